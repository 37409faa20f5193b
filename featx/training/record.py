"""Heads as files: the header that training writes, what a head was made from, the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from featx.artifact import Header, describe_environment
from featx.artifact.shown import Cells, Framed
from featx.classifier.staleness import record_provenance
from featx.errors import ArtifactError
from featx.features.contents import MAX_HELD_OUT, HeldOut
from featx.features.file import FeatureFile
from featx.heads.describe import describe_head
from featx.heads.head import Head, lines_of_head, open_head
from featx.heads.samples.selection import ClassWeight
from featx.heads.tasks import TASKS
from featx.heads.tasks.calibration import Calibration
from featx.heads.tasks.scores import Scores
from featx.heads.tasks.tables import score_cells, score_columns
from featx.training.trained import Trained

_ORIGIN = ("source", "weights", "val_fraction")
"""Details that export needs to find images and weights again."""
_LICENCE = ("licence",)
"""Detail of the weights, in files that know it."""


def made_from(
    cache: FeatureFile,
    options: Mapping[str, Any],
    *,
    excluded: Sequence[str] = (),
    start: str | None = None,
) -> dict[str, Any]:
    """Return the details of a header that decide whether training would write the head again.

    Args:
        cache: The feature file.
        options: What was asked for, JSON values or tuples.
        excluded: Sample ids of training images that were left out.
        start: The sha256 of the head that training starts from.
    """
    own = {
        "features": cache.inputs_sha256,
        "options": json.loads(json.dumps(options)),
        "featx": describe_environment()["featx"],
    }
    if start is not None:
        own["start"] = start
    details = {"features": str(cache.path.resolve()), "made_from": own}
    return details | {"excluded": list(excluded)} if excluded else details


def find_head(path: Path) -> Head | None:
    """Return the head at an output; None where it is damaged."""
    with suppress(ArtifactError):
        return open_head(path)
    return None


def is_made_from(head: Head, path: Path, inputs: Mapping[str, Any]) -> bool:
    """Return whether the head at a path has the details that ``made_from`` returned.

    The feature file may lie elsewhere than then, where head and features lie in one folder: both
    were copied or moved together.
    """
    details = head.header.details
    recorded, now = Path(str(details.get("features"))), Path(inputs["features"])
    is_along = recorded.name == now.name and now.parent == path.resolve().parent
    return details.get("excluded") == inputs.get("excluded") and all(
        details.get(name) == own
        for name, own in inputs.items()
        if not (name == "features" and is_along)
    )


def describe_replaced(head: Head | None) -> str:
    """Describe the head that is about to be replaced in a few words; None is a damaged one."""
    if head is None:
        return "a head that cannot be read"
    details = head.header.details
    return describe_head(details.get("choice", {}), details.get("metrics", {}))


def head_header(
    cache: FeatureFile,
    trained: Trained,
    inputs: Mapping[str, Any],
    *,
    class_weight: ClassWeight,
    more: Mapping[str, Any],
    with_views: bool = True,
) -> Header:
    """Return the header of a trained head.

    Args:
        cache: What it was trained on, excluded images left out.
        trained: The head.
        inputs: Of ``made_from``.
        class_weight: As in the options.
        more: Further details, JSON values.
        with_views: Whether the views of the file trained it, where it has some.
    """
    source, calibration = cache.header.details, trained.calibration
    weight = dict(class_weight) if isinstance(class_weight, Mapping) else class_weight
    details: dict[str, Any] = {
        **inputs,
        **{name: source[name] for name in (*_ORIGIN, *_LICENCE) if name in source},
        "activation": "relu",
        "task": trained.task.name,
        "choice": trained.choice,
        "class_weight": weight,
        "temperature": calibration.temperature if calibration else 1.0,
        "calibration": asdict(calibration) if calibration else None,
        "metrics": {split: scores.to_dict() for split, scores in trained.metrics.items()},
        **record_provenance(cache, trained.task, drawn=trained.drawn, with_views=with_views),
        **({"views": cache.views.to_dict()} if cache.views and with_views else {}),
        **more,
    }
    held_out = cache.rows("val")
    if not source.get("own_validation") and len(held_out) <= MAX_HELD_OUT:
        details["held_out"] = HeldOut.of(cache.digests[held_out]).to_text()
    if trained.cross_validated:
        details["cross_validated"] = trained.cross_validated.to_dict()
    if trained.thresholds:
        details["thresholds"] = list(trained.thresholds)
    if trained.unit:
        details["unit"] = dict(zip(("mean", "scale"), trained.unit, strict=True))
    return Header(
        kind="head",
        spec=cache.header.spec,
        classes=trained.names,
        details=details,
        environment=describe_environment("torch", "numpy", "scikit-learn"),
    )


@dataclass(frozen=True, repr=False)
class HeadReport(Framed):
    """A head that was trained; the rest stands in its header.

    Attributes:
        path: The head file.
        head: The head itself.
        seconds: Of training in this run, without reading and writing.
        is_unchanged: The file had been made from the same features with the same options, and was
            left as it is.
        replaced: The head that was replaced, in a few words; empty where there was none.
    """

    path: Path
    head: Head
    seconds: float = 0.0
    is_unchanged: bool = False
    replaced: str = ""

    @property
    def choice(self) -> dict[str, Any]:
        """The hyperparameters that were chosen, JSON values."""
        return dict(self.head.header.details["choice"])

    @cached_property
    def metrics(self) -> dict[str, Scores]:
        """Scores of each split that has labelled samples."""
        return self._scores(self.head.header.details["metrics"])

    @cached_property
    def calibration(self) -> Calibration | None:
        """Calibration of the probabilities; None where it was left out or nothing was held out."""
        return calibration_of(self.head)

    def _scores(self, metrics: Mapping[str, Any]) -> dict[str, Scores]:
        read = TASKS[self.head.task].scores_from_dict
        return {split: read(own) for split, own in metrics.items()}

    def _lines(self) -> Iterator[str]:
        yield f"{type(self).__name__}: {self.path}"
        yield from lines_of_head(self.head)

    def _cells(self) -> Cells:
        return score_cells(self.metrics)

    def _columns(self) -> dict[str, Sequence[Any]]:
        return score_columns(self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "path": str(self.path),
            "task": self.head.task,
            "thresholds": list(self.head.thresholds),
            "metrics": {split: scores.to_dict() for split, scores in self.metrics.items()},
            "seconds": self.seconds,
            "choice": self.choice,
            "calibration": asdict(self.calibration) if self.calibration else None,
            "is_unchanged": self.is_unchanged,
            "replaced": self.replaced,
        }


def calibration_of(head: Head) -> Calibration | None:
    """Return the calibration that a head's header holds."""
    calibration = head.header.details["calibration"]
    return Calibration(**calibration) if calibration else None
