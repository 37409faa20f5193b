"""Stage 2: fit a head on cached features.

options     what a user chooses, and what comes back
samples     what the cache gives to train on, and what is wrong with it
memory      how much there is, and sizes as people write them
room        where training takes place: in memory or in blocks, on the CPU or a GPU
blocks      training in passes over the file
scoring     scores of samples that come a few at a time
solving     from samples in memory to layers
answers     what a solver is asked, and what makes an answer of its layers: classes, tags or numbers
fitting     from the cache to heads that are ready to be written, and their scores
stage       train_head(): open the cache, fit, score, write
comparison  compare(): the same head on several caches, side by side
"""

from featx.stages.train.comparison import ComparedCache, CompareReport, compare
from featx.stages.train.options import CrossValidated, TrainOptions, TrainReport
from featx.stages.train.stage import train_head

__all__ = [
    "CompareReport",
    "ComparedCache",
    "CrossValidated",
    "TrainOptions",
    "TrainReport",
    "compare",
    "train_head",
]
