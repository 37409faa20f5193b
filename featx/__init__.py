"""Image features once, heads in seconds, one ONNX file that proves itself.

    images ──extract──▶ features.h5 ──train-head──▶ head.safetensors ──export──▶ model.onnx
                        features-CUT.h5 ──finetune──▶ tuned.safetensors ──export──▶ model.onnx

The names in ``__all__`` are the whole public API. Each is loaded when it is first used, so that
``import featx`` and predicting never load torch.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # the command starts with this module; typing would take most of its time
if TYPE_CHECKING:
    from typing import Any

    from featx import errors
    from featx.backbones.listing import list_backbones
    from featx.classifier.prediction import Prediction, Predictions
    from featx.errors import FeatxError
    from featx.estimators import FeatureExtractor, ImageClassifier
    from featx.extraction.options import ExtractOptions, ExtractReport
    from featx.features.file import FeatureFile, open_features
    from featx.heads.head import Head, open_head
    from featx.heads.samples.selection import FewShot
    from featx.heads.solvers.mlp import MLPOptions
    from featx.heads.solvers.sgd import SGDOptions
    from featx.stages.audit import (
        AuditReport,
        Finding,
        audit,
        write_audit_page,
        write_findings,
        write_groups,
    )
    from featx.stages.check import (
        CheckOptions,
        CheckReport,
        FileStatus,
        StatusReport,
        check,
        status,
    )
    from featx.stages.compare import (
        ComparedCache,
        ComparedHead,
        CompareHeadsReport,
        CompareReport,
        compare,
        compare_heads,
    )
    from featx.stages.evaluate import EvaluateReport, evaluate
    from featx.stages.export import (
        ExportOptions,
        ExportReport,
        StateDictReport,
        export_onnx,
        export_state_dict,
    )
    from featx.stages.extract import extract, extract_layers
    from featx.stages.finetune import FinetuneReport, finetune
    from featx.stages.merge import MergeReport, merge_parts
    from featx.stages.predict import Predictor
    from featx.stages.push import PushReport, push
    from featx.stages.relabel import Correction, RelabelReport, relabel
    from featx.stages.report import ReportOptions, ReportPage, write_report
    from featx.stages.similar import Neighbour, embed, similar, write_similar_page
    from featx.stages.train import TrainReport, train_head
    from featx.stages.web_page import WebPage, write_web_page
    from featx.training.finetune.options import FinetuneOptions
    from featx.training.finetune.outcome import Events
    from featx.training.options import TrainOptions

__version__ = "0.1.0"

# ONNX Runtime reads this once, when it is imported, which any module below may do. Without it, it
# keeps a device id in the home folder and sends events. Child processes inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
if _runtime := sys.modules.get("onnxruntime"):  # imported before featx: too late for the variable
    _runtime.disable_telemetry_events()

__all__ = [
    "AuditReport",
    "CheckOptions",
    "CheckReport",
    "CompareHeadsReport",
    "CompareReport",
    "ComparedCache",
    "ComparedHead",
    "Correction",
    "EvaluateReport",
    "Events",
    "ExportOptions",
    "ExportReport",
    "ExtractOptions",
    "ExtractReport",
    "FeatureExtractor",
    "FeatureFile",
    "FeatxError",
    "FewShot",
    "FileStatus",
    "Finding",
    "FinetuneOptions",
    "FinetuneReport",
    "Head",
    "ImageClassifier",
    "MLPOptions",
    "MergeReport",
    "Neighbour",
    "Prediction",
    "Predictions",
    "Predictor",
    "PushReport",
    "RelabelReport",
    "ReportOptions",
    "ReportPage",
    "SGDOptions",
    "StateDictReport",
    "StatusReport",
    "TrainOptions",
    "TrainReport",
    "WebPage",
    "audit",
    "check",
    "compare",
    "compare_heads",
    "embed",
    "errors",
    "evaluate",
    "export_onnx",
    "export_state_dict",
    "extract",
    "extract_layers",
    "finetune",
    "list_backbones",
    "merge_parts",
    "open_features",
    "open_head",
    "push",
    "relabel",
    "similar",
    "status",
    "train_head",
    "write_audit_page",
    "write_findings",
    "write_groups",
    "write_report",
    "write_similar_page",
    "write_web_page",
]

_LOADED_FROM = {
    "featx.backbones.listing": ("list_backbones",),
    "featx.classifier.prediction": ("Prediction", "Predictions"),
    "featx.errors": ("FeatxError",),
    "featx.estimators": ("FeatureExtractor", "ImageClassifier"),
    "featx.extraction.options": ("ExtractOptions", "ExtractReport"),
    "featx.features.file": ("FeatureFile", "open_features"),
    "featx.heads.head": ("Head", "open_head"),
    "featx.heads.samples.selection": ("FewShot",),
    "featx.heads.solvers.mlp": ("MLPOptions",),
    "featx.heads.solvers.sgd": ("SGDOptions",),
    "featx.stages.audit": (
        *("AuditReport", "Finding"),
        *("audit", "write_audit_page", "write_findings", "write_groups"),
    ),
    "featx.stages.check": (
        *("CheckOptions", "CheckReport", "FileStatus", "StatusReport"),
        *("check", "status"),
    ),
    "featx.stages.compare": (
        *("ComparedCache", "ComparedHead", "CompareHeadsReport", "CompareReport"),
        *("compare", "compare_heads"),
    ),
    "featx.stages.evaluate": ("EvaluateReport", "evaluate"),
    "featx.stages.export": (
        *("ExportOptions", "ExportReport", "StateDictReport"),
        *("export_onnx", "export_state_dict"),
    ),
    "featx.stages.extract": ("extract", "extract_layers"),
    "featx.stages.finetune": ("FinetuneReport", "finetune"),
    "featx.stages.merge": ("MergeReport", "merge_parts"),
    "featx.stages.predict": ("Predictor",),
    "featx.stages.push": ("PushReport", "push"),
    "featx.stages.relabel": ("Correction", "RelabelReport", "relabel"),
    "featx.stages.report": ("ReportOptions", "ReportPage", "write_report"),
    "featx.stages.similar": ("Neighbour", "embed", "similar", "write_similar_page"),
    "featx.stages.train": ("TrainReport", "train_head"),
    "featx.stages.web_page": ("WebPage", "write_web_page"),
    "featx.training.finetune.options": ("FinetuneOptions",),
    "featx.training.finetune.outcome": ("Events",),
    "featx.training.options": ("TrainOptions",),
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "errors":
        return importlib.import_module("featx.errors")
    for module, names in _LOADED_FROM.items():
        if name in names:
            try:
                return getattr(importlib.import_module(module), name)
            except ImportError as err:
                from featx.packages import import_problem

                if problem := import_problem(err):
                    err.add_note(str(problem))
                raise
    raise AttributeError(f"module 'featx' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
