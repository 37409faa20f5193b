"""Train a head: open the cache, fit, score, write."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

from featx.artifact import Header, require_apart, require_replaceable, run_files
from featx.artifact.bars import drawing
from featx.artifact.keywords import by_keyword
from featx.classifier.tails import features_through
from featx.errors import ConfigError
from featx.features.file import FeatureFile, open_features
from featx.heads.head import Head, save_head
from featx.heads.samples.data import Step
from featx.heads.samples.selection import FewShot, FewShotScores, Spread, summarise
from featx.heads.solvers.mlp import MLPOptions
from featx.heads.solvers.sgd import SGDOptions
from featx.heads.tasks import TASKS
from featx.training.fitting import EpochProgress, fit_heads
from featx.training.options import (
    CrossValidated,
    TrainKeywords,
    TrainOptions,
    TrainReport,
    train_options,
)
from featx.training.record import (
    calibration_of,
    describe_replaced,
    find_head,
    head_header,
    is_made_from,
    made_from,
    metrics_of,
)
from featx.training.samples import exclude, warn_of_leaks, with_excluded
from featx.training.trained import Trained, note_scores_of_kept

log = logging.getLogger(__name__)


@by_keyword(TrainOptions, MLPOptions, SGDOptions, FewShot)
def train_head(
    features: str | Path,
    output: str | Path,
    options: TrainOptions | None = None,
    *,
    weights: str | None = None,
    progress: EpochProgress | bool | None = None,
    step: Step | None = None,
    **keywords: Unpack[TrainKeywords],
) -> TrainReport:
    """Fit a head on the training split of a feature file and write it.

    Validation and test splits are only reported. A head at the output is replaced; one that was
    made from the same features with the same options is left as it is.

    Args:
        features: The feature file; at a cut, the unchanged network behind it is run.
        output: The head file.
        options: Which head and how.
        keywords: The same by name, with those of ``MLPOptions``, ``SGDOptions`` and ``FewShot``:
            ``head="mlp", hidden=256``. ``exclude`` may be a file, as of ``featx train-head``.
        weights: At a cut, where the pretrained weights are now, where they have moved.
        progress: Called after each epoch of ``sgd``. Without it and ``step`` the step is shown in a
            terminal or notebook; False shows nothing.
        step: Called with the step under way, in a few words.

    Raises:
        ArtifactError: The feature file cannot be used, or the output is not a head.
        SourceError: Its samples cannot train a head.
        ConfigError: An option does not fit.
    """
    output = Path(output)
    options = train_options(options, with_excluded(keywords, features))
    require_apart({"the head": output}, run_files(Path(features)))
    cache = open_features(features, features_later=True)
    exists = require_replaceable(output, "head")
    if weights is not None and cache.cut is None:
        raise ConfigError(f"weights=… has no effect: '{cache.path}' holds vectors, not a cut.")
    _warn_of_random_weights(cache)
    warn_of_leaks(cache)
    inputs, existing = _inputs(cache, options), find_head(output) if exists else None
    if existing and is_made_from(existing, output, inputs):
        with suppress(KeyError, TypeError, AttributeError):  # not as featx writes it
            return _report(output, existing, is_unchanged=True)
    cache = exclude(cache, options.exclude)
    if weights is not None:
        cache = features_through(None, cache, weights)
    with drawing(progress if step is None else False) as draw:
        told = draw.steps(step, "Train head")
        epochs = progress if callable(progress) else None
        trained = fit_heads(cache, options, progress=epochs, step=told)
    if options.exclude:
        note_scores_of_kept(trained[0], features_through(None, cache, weights), options.exclude)
    head = Head(_header(cache, options, trained, inputs), trained[0].layers)
    head = save_head(output, head, overwrite=exists)
    seconds = sum(each.seconds for each in trained)
    replaced = describe_replaced(existing) if exists else ""
    return _report(output, head, seconds=seconds, replaced=replaced)


def _warn_of_random_weights(cache: FeatureFile) -> None:
    """Warn where the network behind a cut has never learnt anything."""
    if cache.cut is not None and str(cache.header.details.get("weights")).startswith("random:"):
        log.warning(
            "The weights that '%s' was made with are random, and so are the features that the head "
            "is trained on. For pretrained ones extract again with weights='default' and "
            "overwrite=True.",
            cache.path,
        )


def _inputs(cache: FeatureFile, options: TrainOptions) -> dict[str, Any]:
    left_out = {"overwrite", "exclude"}
    if options.use_views:  # as in heads of earlier versions
        left_out.add("use_views")
    chosen = {name: value for name, value in asdict(options).items() if name not in left_out}
    return made_from(cache, chosen, excluded=options.exclude)


def _report(
    path: Path, head: Head, *, seconds: float = 0.0, is_unchanged: bool = False, replaced: str = ""
) -> TrainReport:
    """Return the report of a head, from its header."""
    details, scores_from_dict = head.header.details, TASKS[head.task].scores_from_dict
    cross_validated = details.get("cross_validated")
    few_shot = details.get("few_shot", {"metrics": {}})["metrics"]
    return TrainReport(
        path=path,
        head=head,
        metrics=metrics_of(head),
        seconds=seconds,
        choice=details["choice"],
        calibration=calibration_of(head),
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


def _header(
    cache: FeatureFile,
    options: TrainOptions,
    draws: Sequence[Trained],
    inputs: Mapping[str, Any],
) -> Header:
    """Return the header of the head of the first draw."""
    more: dict[str, Any] = {}
    if options.few_shot:
        few_shot = summarise([each.metrics for each in draws])
        scores = {split: asdict(each) for split, each in few_shot.items()}
        more["few_shot"] = asdict(options.few_shot) | {"metrics": scores}
    return head_header(
        *(cache, draws[0], inputs),
        class_weight=options.class_weight,
        more=more,
        with_views="views" in draws[0].choice,
    )
