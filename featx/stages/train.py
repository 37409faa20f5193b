"""Train a head: open the cache, fit, score, write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from featx.artifact import (
    Header,
    describe_environment,
    require_apart,
    require_replaceable,
    run_files,
)
from featx.classifier.staleness import record_provenance
from featx.errors import ArtifactError
from featx.features.file import FeatureFile, open_features
from featx.features.splits import MAX_HELD_OUT, HeldOut
from featx.heads.head import Head, describe_head, open_head, save_head
from featx.heads.samples.data import Step, no_step
from featx.heads.samples.selection import FewShotScores, Spread, summarise
from featx.heads.tasks import TASKS
from featx.heads.tasks.calibration import Calibration
from featx.training.fitting import EpochProgress, Trained, fit_heads
from featx.training.options import CrossValidated, TrainOptions, TrainReport
from featx.training.samples import warn_of_leaks


def train_head(
    features: str | Path,
    output: str | Path,
    options: TrainOptions | None = None,
    *,
    progress: EpochProgress | None = None,
    step: Step | None = None,
) -> TrainReport:
    """Fit a head on the training split of a feature file and write it.

    Validation and test splits are only reported. A head at the output is replaced; one that was
    made from the same features with the same options is left as it is.

    Args:
        features: The feature file.
        output: The head file.
        options: Which head and how.
        progress: Called after each epoch of ``sgd``.
        step: Called with the step under way, in a few words.

    Raises:
        ArtifactError: The feature file cannot be used, or the output is not a head.
        SourceError: Its samples cannot train a head.
        ConfigError: An option does not fit.
    """
    options, output = options or TrainOptions(), Path(output)
    require_apart({"the head": output}, run_files(Path(features)))
    cache = open_features(features, features_later=True)
    exists = require_replaceable(output, "head")
    warn_of_leaks(cache)
    existing, inputs = None, _inputs(cache, options)
    if exists:
        with suppress(ArtifactError):  # damaged
            existing = open_head(output)
    if existing and all(existing.header.details.get(name) == inputs[name] for name in inputs):
        with suppress(KeyError, TypeError, AttributeError):  # not as featx writes it
            return _report(output, existing, is_unchanged=True)
    trained = fit_heads(cache, options, progress=progress, step=step or no_step)
    head = Head(_header(cache, options, trained, inputs), trained[0].layers)
    head = save_head(output, head, overwrite=exists)
    seconds = sum(each.seconds for each in trained)
    replaced = "a head that cannot be read" if exists else ""
    if existing:
        details = existing.header.details
        replaced = describe_head(details.get("choice", {}), details.get("metrics", {}))
    return _report(output, head, seconds=seconds, replaced=replaced)


def _inputs(cache: FeatureFile, options: TrainOptions) -> dict[str, Any]:
    """Return the details of a header that decide whether training would write the head again."""
    chosen = {name: value for name, value in asdict(options).items() if name != "overwrite"}
    made_from = {
        "features": cache.inputs_sha256,
        "options": json.loads(json.dumps(chosen)),
        "featx": describe_environment()["featx"],
    }
    return {"features": str(cache.path.resolve()), "made_from": made_from}


def _report(
    path: Path, head: Head, *, seconds: float = 0.0, is_unchanged: bool = False, replaced: str = ""
) -> TrainReport:
    """Return the report of a head, from its header."""
    details, scores_from_dict = head.header.details, TASKS[head.task].scores_from_dict
    calibration, cross_validated = details["calibration"], details.get("cross_validated")
    few_shot = details.get("few_shot", {"metrics": {}})["metrics"]
    return TrainReport(
        path=path,
        head=head,
        metrics={split: scores_from_dict(own) for split, own in details["metrics"].items()},
        seconds=seconds,
        choice=details["choice"],
        calibration=Calibration(**calibration) if calibration else None,
        few_shot={
            split: FewShotScores(**{name: Spread(**own) for name, own in scores.items()})
            for split, scores in few_shot.items()
        },
        cross_validated=CrossValidated(
            scores_from_dict(cross_validated["metrics"]), cross_validated["num_folds"]
        )
        if cross_validated
        else None,
        is_unchanged=is_unchanged,
        replaced=replaced,
    )


_ORIGIN = ("source", "weights", "val_fraction")
"""Details that export needs to find images and weights again."""


def _header(
    cache: FeatureFile,
    options: TrainOptions,
    draws: Sequence[Trained],
    inputs: Mapping[str, Any],
) -> Header:
    """Return the header of the head of the first draw."""
    trained, source, weight = draws[0], cache.header.details, options.class_weight
    calibration = trained.calibration
    details: dict[str, Any] = {
        **inputs,
        **{name: source[name] for name in _ORIGIN},
        "activation": "relu",
        "task": trained.task.name,
        "choice": trained.choice,
        "class_weight": dict(weight) if isinstance(weight, Mapping) else weight,
        "temperature": calibration.temperature if calibration else 1.0,
        "calibration": asdict(calibration) if calibration else None,
        "metrics": {split: scores.to_dict() for split, scores in trained.metrics.items()},
        **record_provenance(cache, trained.task, drawn=trained.drawn),
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
    if options.few_shot:
        few_shot = summarise([each.metrics for each in draws])
        scores = {split: asdict(each) for split, each in few_shot.items()}
        details["few_shot"] = asdict(options.few_shot) | {"metrics": scores}
    return Header(
        kind="head",
        spec=cache.header.spec,
        classes=trained.names,
        details=details,
        environment=describe_environment("torch", "numpy", "scikit-learn"),
    )
