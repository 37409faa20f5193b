"""train_head(): open the cache, fit, score, write."""

from __future__ import annotations

from collections.abc import Mapping
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
from featx.features.file import FeatureFile, open_features
from featx.features.splits import MAX_HELD_OUT, HeldOut
from featx.heads.head import Head, save_head
from featx.heads.metrics.single_label import Metrics
from featx.heads.samples.few_shot import FewShotScores, summarise
from featx.training.current import describe_earlier, made_from, open_earlier, report_if_current
from featx.training.fitting import Trained, fit_heads
from featx.training.options import TrainOptions, TrainReport
from featx.training.samples import warn_of_leaks
from featx.training.solving import EpochProgress, Step


def train_head(
    features: str | Path,
    output: str | Path,
    options: TrainOptions | None = None,
    *,
    progress: EpochProgress | None = None,
    step: Step | None = None,
) -> TrainReport:
    """Fit a head on the training split of a feature file and write it.

    Validation and test splits are only reported. An earlier head is replaced; one that was made
    from the same features with the same options is left as it is.

    Args:
        features: The feature file.
        output: The head file.
        options: Which head and how.
        progress: Called after each epoch of ``sgd``.
        step: Called with the step under way, in a few words.

    Raises:
        ArtifactError: The feature file cannot be used, or the output is something else than a head.
        SourceError: Its samples cannot train a head.
        ConfigError: An option does not fit.
    """
    options, output = options or TrainOptions(), Path(output)
    require_apart({"the head": output}, run_files(Path(features)))
    cache = open_features(features, features_later=True)
    exists = require_replaceable(output, "head")
    warn_of_leaks(cache)
    earlier = open_earlier(output) if exists else None
    if earlier and (report := report_if_current(output, earlier, cache, options)):
        return report
    trained = fit_heads(cache, options, progress=progress, step=step)
    first = trained[0]
    few_shot = summarise([_of_classes(each) for each in trained]) if options.few_shot else {}
    head = Head(_header(cache, options, first, few_shot), first.answers.layers)
    return TrainReport(
        path=output,
        head=save_head(output, head, overwrite=exists),
        metrics=first.metrics,
        seconds=sum(each.seconds for each in trained),
        choice=first.answers.choice,
        calibration=first.answers.calibration,
        few_shot=few_shot,
        cross_validated=first.cross_validated,
        replaced=describe_earlier(earlier) if exists else "",
    )


def _of_classes(trained: Trained) -> dict[str, Metrics]:
    return {split: own for split, own in trained.metrics.items() if isinstance(own, Metrics)}


_PROVENANCE = ("source", "weights", "val_fraction")
"""What export needs to find images and weights again; the head passes it on."""


def _held_out(cache: FeatureFile) -> dict[str, str]:
    """Return what tells which of the source's images were held out, if featx chose them."""
    rows = cache.rows("val")
    if cache.header.details.get("own_validation") or len(rows) > MAX_HELD_OUT:
        return {}
    return {"held_out": HeldOut.of(cache.digests[rows]).to_text()}


def _header(
    cache: FeatureFile,
    options: TrainOptions,
    trained: Trained,
    few_shot: Mapping[str, FewShotScores],
) -> Header:
    source, answers, weight = cache.header.details, trained.answers, options.class_weight
    calibration = answers.calibration
    details: dict[str, Any] = {
        "features": str(cache.path.resolve()),
        "made_from": made_from(cache, options),
        **{name: source[name] for name in _PROVENANCE},
        "activation": "relu",
        "task": trained.task.name,
        "choice": answers.choice,
        "class_weight": dict(weight) if isinstance(weight, Mapping) else weight,
        "temperature": calibration.temperature if calibration else 1.0,
        "calibration": calibration.to_dict() if calibration else None,
        "metrics": {split: scores.to_dict() for split, scores in trained.metrics.items()},
        **record_provenance(cache, trained.task, drawn=trained.drawn),
        **_held_out(cache),
    }
    if trained.cross_validated:
        details["cross_validated"] = trained.cross_validated.to_dict()
    if answers.thresholds:
        details["thresholds"] = list(answers.thresholds)
    if answers.unit:
        details["unit"] = dict(zip(("mean", "scale"), answers.unit, strict=True))
    if options.few_shot:
        scores = {split: each.to_dict() for split, each in few_shot.items()}
        details["few_shot"] = asdict(options.few_shot) | {"metrics": scores}
    return Header(
        kind="head",
        spec=cache.header.spec,
        classes=trained.names,
        details=details,
        environment=describe_environment("torch", "numpy", "scikit-learn"),
    )
