"""Audit a feature file: what may be wrong with its labels and its images.

judged      labels that heads contradict: classes, tags and numbers
labels      probabilities of classes, and how many labels are wrong
given       labels that a caller gives
evidence    the nearest images whose own label is trusted
pictures    the images as small grey pictures, and what is measured of them
near        pairs of images that show the same picture
sequences   runs of numbered images that are alike
same        both, with the copies of one content
copies      images of one picture: in several splits, or with several labels
odd         pictures far from all others, of one colour, empty, tiny, or blurred
worth       what leaks are worth, classes that are alike, and where images are lacking
findings    what an audit finds, and the table of it
report      findings of all kinds, joined
page        the findings with their pictures, to be marked
"""

from featx.stages.audit.findings import (
    AlikeClasses,
    AuditReport,
    ClassGain,
    CurvePoint,
    Finding,
    FindingKind,
    ImageSequence,
    LeaksWorth,
    write_findings,
)
from featx.stages.audit.page import write_audit_page
from featx.stages.audit.report import audit

__all__ = [
    "AlikeClasses",
    "AuditReport",
    "ClassGain",
    "CurvePoint",
    "Finding",
    "FindingKind",
    "ImageSequence",
    "LeaksWorth",
    "audit",
    "write_audit_page",
    "write_findings",
]
