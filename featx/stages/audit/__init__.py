"""Audit a feature file: what may be wrong with its labels and its images.

labels      images whose label the other images contradict, and how many labels are wrong
copies      images of one content: in several splits, or with several labels
report      findings, joined and written as a table
"""

from featx.stages.audit.report import AuditReport, Finding, FindingKind, audit, write_findings

__all__ = ["AuditReport", "Finding", "FindingKind", "audit", "write_findings"]
