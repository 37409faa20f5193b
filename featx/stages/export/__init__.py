"""Stage 3: stitch preprocessing, backbone and head into one ONNX file that proves itself.

options     options and report, and whether a model is already of these options
stage       export: from a head to a published file, proven on images
network     the network of a head, with its weights and its tail
evidence    images of the source, and what the head answered for them
state_dict  network and head as a state dict of the whole model
"""

from featx.stages.export.options import ExportKeywords, ExportOptions, ExportReport
from featx.stages.export.stage import export_onnx
from featx.stages.export.state_dict import StateDictReport, export_state_dict

__all__ = [
    "ExportKeywords",
    "ExportOptions",
    "ExportReport",
    "StateDictReport",
    "export_onnx",
    "export_state_dict",
]
