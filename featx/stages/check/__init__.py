"""Check files: intact, safe to read, and what their sources give today.

stage     one file of any kind
model     the proof of a model, repeated on images
commands  what makes the files of a folder again
folder    the three files of a folder, and the commands that fix them
"""

from featx.stages.check.folder import FileStatus, StatusReport, status
from featx.stages.check.stage import CheckOptions, CheckReport, check

__all__ = ["CheckOptions", "CheckReport", "FileStatus", "StatusReport", "check", "status"]
