"""A head on one page: what it gets right, what it gets wrong, and how sure it is of both.

stage     write_report(): open, look, tell, write
look      what the page shows, as arrays and numbers
pictures  mistakes, with the pictures of their images
classes   the story of a head of classes,
tags      of tags, and
numbers   of numbers
plots     the figures; the only place that loads matplotlib
page      the HTML
"""

from featx.stages.report.stage import ReportOptions, ReportPage, write_report

__all__ = ["ReportOptions", "ReportPage", "write_report"]
