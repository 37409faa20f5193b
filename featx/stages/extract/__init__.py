"""Stage 1: run a frozen backbone once over the images of a source and cache its features.

options    what a user chooses, and what comes back
settings   what a row depends on: compared with the file and the log there are
stage      extract(): lock, compare, go on, publish
earlier    what lies at the output already
backbone   the backbone and its engine; the only part that loads torch, and only where it must
calibrate  the images that int8 is calibrated with
image      one image on its way
batches    images, read ahead, decoded and run in threads
squares    from encoded images to squares, by as many threads or processes as are fast
contents   images with the same content: which of them the backbone has to see
pipeline   from batches to rows in the log
profile    where the time went
report     the account of every image, for people and machines
"""

from featx.stages.extract.options import ExtractOptions, ExtractReport
from featx.stages.extract.stage import extract

__all__ = ["ExtractOptions", "ExtractReport", "extract"]
