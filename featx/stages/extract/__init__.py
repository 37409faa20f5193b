"""Stage 1: run a frozen backbone once over the images of a source and cache its features.

options    what a user chooses, and what comes back
settings   what a row depends on: compared with the file and the log there are
stage      extract(): lock, compare, go on, publish
pipeline   from images to rows in the log; the only part that loads torch
report     the account of every image, for people and machines
"""

from featx.stages.extract.options import ExtractOptions, ExtractReport
from featx.stages.extract.stage import extract

__all__ = ["ExtractOptions", "ExtractReport", "extract"]
