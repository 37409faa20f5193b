"""Child processes: one call under limits, and workers that answer messages."""
