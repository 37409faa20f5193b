"""Is a file what it should be: intact, safe to read, and still what its source would give?

stage   every file: intact and safe; features against their source
model   a model's proof, repeated on images
folder  the three files of a folder: which are current, and the commands that fix the others
"""

from featx.stages.check.folder import FileStatus, StatusReport, status
from featx.stages.check.stage import CheckOptions, CheckReport, check

__all__ = ["CheckOptions", "CheckReport", "FileStatus", "StatusReport", "check", "status"]
