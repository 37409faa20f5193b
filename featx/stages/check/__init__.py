"""Check files: intact, safe to read, and what their sources give today.

stage     one file of any kind
model     the proof of a model, repeated on images
commands  what makes the files of a folder again
folder    the three files of a folder, and the commands that fix them
parts     a folder of parts, and those of them that are not done
state     of one file, and why
"""

from featx.stages.check.folder import StatusReport, status
from featx.stages.check.stage import CheckOptions, CheckReport, check
from featx.stages.check.state import FileStatus

__all__ = ["CheckOptions", "CheckReport", "FileStatus", "StatusReport", "check", "status"]
