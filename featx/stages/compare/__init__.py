"""Compare: the default head on several feature files, or several heads, on the same images.

caches        the same head on each of several feature files
heads         heads and tuned heads: scores, paired differences, cost
same_images   checks that files are of the same images, and the split that is scored
"""

from featx.stages.compare.caches import ComparedCache, CompareReport, compare
from featx.stages.compare.heads import ComparedHead, CompareHeadsReport, Timing, compare_heads

__all__ = [
    "CompareHeadsReport",
    "CompareReport",
    "ComparedCache",
    "ComparedHead",
    "Timing",
    "compare",
    "compare_heads",
]
