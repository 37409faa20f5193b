"""Stage 3: stitch preprocessing, backbone and head into one ONNX file that proves itself.

options   options and report, and whether a model is already of these options
stage     the way from a head to a published file
evidence  images of the source, and what the head answered for them
"""

from featx.stages.export.options import ExportOptions, ExportReport
from featx.stages.export.stage import export_onnx

__all__ = ["ExportOptions", "ExportReport", "export_onnx"]
