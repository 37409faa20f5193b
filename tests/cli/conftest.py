"""Extractions that start no process, but for tests that ask for ``as_is``."""

from __future__ import annotations

from extractions import as_is, fast_extraction

__all__ = ["as_is", "fast_extraction"]
