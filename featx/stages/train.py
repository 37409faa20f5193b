"""Train a head: open the cache, fit, score, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
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
from featx.training.options import CrossValidated, TrainKeywords, TrainOptions, train_options
from featx.training.record import (
    HeadReport,
    describe_replaced,
    find_head,
    head_header,
    is_made_from,
    made_from,
)
from featx.training.samples import exclude, warn_of_leaks, warn_of_random_weights, with_excluded
from featx.training.trained import Trained, note_scores_of_kept


@dataclass(frozen=True, repr=False)
class TrainReport(HeadReport):
    """A trained head and its scores; its ``seconds`` are those of fitting."""

    @property
    def few_shot(self) -> dict[str, FewShotScores]:
        """Scores of each split over all draws; empty without ``few_shot``."""
        found = self.head.header.details.get("few_shot", {"metrics": {}})["metrics"]
        return {
            split: FewShotScores(**{name: Spread(**own) for name, own in scores.items()})
            for split, scores in found.items()
        }

    @property
    def cross_validated(self) -> CrossValidated | None:
        """Scores by cross-validation inside the training split.

        None where there are 50 validation images, or the solver does not cross-validate.
        """
        found = self.head.header.details.get("cross_validated")
        read = TASKS[self.head.task].scores_from_dict
        return CrossValidated(read(found["metrics"]), found["num_folds"]) if found else None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        crossed = self.cross_validated
        return super().to_dict() | {
            "few_shot": {split: asdict(scores) for split, scores in self.few_shot.items()},
            "views": self.choice.get("views"),
            "cross_validated": crossed.to_dict() if crossed else None,
        }


@by_keyword(TrainOptions, MLPOptions, SGDOptions, FewShot)
def train_head(
    features: str | Path,
    output: str | Path,
    options: TrainOptions | None = None,
    *,
    weights: str | None = None,
    ray: str | None = None,
    allow_mixed: bool = False,
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
        ray: Of parts, the Ray cluster whose nodes read them and add up sums, as of ``extract``; the
            head has the same optimum. For ``lbfgs``, ``ridge`` and ``centroid``.
        allow_mixed: Nodes of the cluster may have processors of several kinds.
        progress: Called after each epoch of ``sgd``. Without it and ``step`` the step is shown in a
            terminal or notebook; False shows nothing.
        step: Called with the step under way, in a few words.

    Raises:
        ArtifactError: The feature file cannot be used, or the output is not a head.
        SourceError: Its samples cannot train a head.
        ConfigError: An option does not fit.
        ClusterError: There is no cluster where ``ray`` says, or its nodes cannot be used.
    """
    output = Path(output)
    options = train_options(options, with_excluded(keywords, features))
    if ray is not None:
        _require_sums(options)
    elif allow_mixed:
        raise ConfigError("allow_mixed=True has no meaning here; it needs ray=….")
    require_apart({"the head": output}, run_files(Path(features)))
    cache = open_features(features, features_later=True)
    exists = require_replaceable(output, "head")
    if weights is not None and cache.cut is None:
        raise ConfigError(f"weights=… has no effect: '{cache.path}' holds vectors, not a cut.")
    warn_of_random_weights(cache, "so are the features that the head is trained on")
    warn_of_leaks(cache)
    inputs, existing = _inputs(cache, options), find_head(output) if exists else None
    if existing and is_made_from(existing, output, inputs):
        with suppress(KeyError, TypeError, AttributeError):  # not as featx writes it
            report = TrainReport(output, existing, is_unchanged=True)
            report.to_dict()  # reads all of the header
            return report
    cache = exclude(cache, options.exclude)
    if weights is not None:
        cache = features_through(None, cache, weights)
    with drawing(progress if step is None else False) as draw, ExitStack() as stack:
        told = draw.steps(step, "Train head")
        epochs, there = progress if callable(progress) else None, None
        if ray is not None:
            from featx.extraction.part_rows import reading_on_cluster

            cluster = reading_on_cluster(
                cache, ray, allow_mixed=allow_mixed, use_views=options.use_views
            )
            there = stack.enter_context(cluster)
        trained = fit_heads(cache, options, progress=epochs, step=told, elsewhere=there)
    if options.exclude:
        note_scores_of_kept(trained[0], features_through(None, cache, weights), options.exclude)
    head = Head(_header(cache, options, trained, inputs), trained[0].layers)
    head = save_head(output, head, overwrite=exists)
    seconds = sum(each.seconds for each in trained)
    replaced = describe_replaced(existing) if exists else ""
    return TrainReport(output, head, seconds, replaced=replaced)


def _require_sums(options: TrainOptions) -> None:
    """Check that a head is made of sums over samples, which a cluster can give."""
    head = "an MLP" if options.head == "mlp" else str(options.solver)
    if options.head == "mlp" or options.solver in ("sgd", "sklearn"):
        raise ConfigError(
            f"ray=… adds up sums over parts, of which lbfgs, ridge and centroid are made, and "
            f"{head} is not. Use solver='lbfgs', or leave ray=… out."
        )


def _inputs(cache: FeatureFile, options: TrainOptions) -> dict[str, Any]:
    left_out = {"overwrite", "exclude"}
    if options.use_views:  # as in heads of earlier versions
        left_out.add("use_views")
    chosen = {name: value for name, value in asdict(options).items() if name not in left_out}
    return made_from(cache, chosen, excluded=options.exclude)


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
