"""Audit a feature file: what may be wrong with its labels and its images.

findings    what an audit finds, and the table of it
labels      labels that heads contradict, how many are wrong, and the images that say so
pictures    the images as small grey pictures: measured, and compared pair by pair
sequences   runs of numbered images that are alike
grouping    a manifest that keeps sequences and copies together
copies      images of one picture: in several splits, or with several labels
odd         pictures far from all others, of one colour, empty, tiny, or blurred
worth       what leaks are worth, classes that are alike, and where images are lacking
report      findings of all kinds, joined; of other labels, where a caller gives some
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
from featx.stages.audit.grouping import GroupedImages, write_groups
from featx.stages.audit.page import write_audit_page
from featx.stages.audit.report import audit

__all__ = [
    "AlikeClasses",
    "AuditReport",
    "ClassGain",
    "CurvePoint",
    "Finding",
    "FindingKind",
    "GroupedImages",
    "ImageSequence",
    "LeaksWorth",
    "audit",
    "write_audit_page",
    "write_findings",
    "write_groups",
]
