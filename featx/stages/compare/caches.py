"""Train the same head on several caches of the same images, to choose a backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

from featx.artifact.bars import drawing
from featx.artifact.keywords import by_keyword
from featx.artifact.shown import Framed
from featx.backbones.spec import BackboneSpec
from featx.classifier.tails import features_through
from featx.errors import counted
from featx.features.file import FeatureFile, open_features
from featx.heads.samples.data import Step
from featx.heads.samples.selection import FewShot
from featx.heads.solvers.mlp import MLPOptions
from featx.heads.solvers.sgd import SGDOptions
from featx.heads.tasks import TASKS
from featx.heads.tasks.scores import Scores
from featx.heads.tasks.tables import main_column, score_columns
from featx.stages.compare.same_images import (
    choose_split,
    images_of,
    require_effect,
    require_same_images,
    require_several,
)
from featx.training.fitting import fit_heads
from featx.training.options import TrainKeywords, TrainOptions, train_options
from featx.training.samples import exclude, warn_of_leaks, with_excluded


@dataclass(frozen=True)
class ComparedCache:
    """Scores of a head on the features of one file.

    Attributes:
        path: The feature file.
        backbone: Its name in the catalog.
        weights: Where they came from.
        layer: Node of the backbone that the features were taken from.
        image_size: Input of the backbone, pixels.
        num_features: Length of one feature.
        settings: Others that features depend on: weights, pool, precision, crop, decode.
        metrics: Scores of the split that is compared.
        choice: The hyperparameters that were chosen, JSON values.
        seconds: Of fitting, without reading.
    """

    path: Path
    backbone: str
    weights: str
    layer: str
    image_size: int
    num_features: int
    settings: dict[str, str]
    metrics: Scores
    choice: dict[str, Any]
    seconds: float


@dataclass(frozen=True, repr=False)
class CompareReport(Framed):
    """Scores of a head on several caches.

    Attributes:
        split: The split that was compared.
        caches: The files, the best first: by top-1, of tags by mean average precision, then by log
            loss; of numbers by mean absolute error.
    """

    _lines_are_rows = True
    split: str
    caches: tuple[ComparedCache, ...]

    def _lines(self) -> Iterator[str]:
        yield f"CompareReport: {counted(len(self.caches), 'feature file')} on {self.split}"
        for each in self.caches:
            column = main_column(each.metrics)
            yield f"{each.path.name}: {each.backbone}, {column.title} {column.text(each.metrics)}"

    def _columns(self) -> dict[str, Sequence[Any]]:
        names = ("path", "backbone", "layer", "image_size", "num_features", "seconds")
        own = {name: [getattr(each, name) for each in self.caches] for name in names}
        own["path"] = [str(path) for path in own["path"]]
        scores = score_columns({str(i): each.metrics for i, each in enumerate(self.caches)})
        return own | {name: values for name, values in scores.items() if name != "split"}

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        rows = [
            asdict(cache) | {"path": str(cache.path), "metrics": cache.metrics.to_dict()}
            for cache in self.caches
        ]
        return {"split": self.split, "caches": rows}


@by_keyword(TrainOptions, MLPOptions, SGDOptions, FewShot)
def compare(
    features: Sequence[str | Path],
    options: TrainOptions | None = None,
    *,
    split: str | None = None,
    weights: str | None = None,
    progress: Step | bool | None = None,
    **keywords: Unpack[TrainKeywords],
) -> CompareReport:
    """Return the scores of the same head, trained on each of several feature files.

    Nothing is written. The files must hold features of the same images.

    Args:
        features: Two files or more; only one is in memory at a time.
        options: Which head and how; None for the default one. With ``few_shot`` the first draw
            counts.
        keywords: The options by name, as of ``train_head``.
        split: The split to compare; None for validation, or test where there is no validation.
        weights: Of files with a cut: where the pretrained weights are now, where they have moved.
        progress: Called with the step under way. None shows it in a terminal or notebook, False
            nowhere.

    Raises:
        ConfigError: There is nothing to compare, no such split, or an option does not fit.
        BackboneError: The weights are missing, or others than those of a file.
        ArtifactError: A file cannot be used.
        ArtifactMismatch: Two files differ in images, labels or splits.
        SourceError: The samples cannot train a head.
    """
    paths = require_several(features, "feature files")
    options = train_options(options, with_excluded(keywords, None))
    first: dict[str, Any] = {}
    compared, has_cut = [], False
    with drawing(progress) as draw:
        tell = draw.steps(progress, "Compare")
        for number, path in enumerate(paths, start=1):
            name = f"{path.name} ({number} of {len(paths)})"
            tell(f"Training on {name}")
            cache = exclude(open_features(path), options.exclude)
            if not first:
                split, first = choose_split(cache, split), images_of(cache)
                warn_of_leaks(cache)
            require_same_images(cache, first, paths[0])
            if cache.cut is not None:
                cache, has_cut = features_through(None, cache, weights), True
            compared.append(_train_on(cache, options, split or "", name, tell))
            del cache  # its features, before the next one's are read
    require_effect(weights, has_cut=has_cut)
    compared.sort(key=lambda each: TASKS[each.metrics.task].rank(each.metrics))
    return CompareReport(split or "", tuple(compared))


def _train_on(
    cache: FeatureFile, options: TrainOptions, split: str, name: str, tell: Step
) -> ComparedCache:
    spec = BackboneSpec.from_dict(cache.header.spec)
    first = fit_heads(cache, options, step=lambda step: tell(f"Training on {name}: {step}"))[0]
    return ComparedCache(
        path=cache.path,
        backbone=spec.backbone,
        weights=str(cache.header.details["weights"]),
        layer=spec.layer,
        image_size=spec.preprocess.image_size,
        num_features=cache.num_features,
        settings={
            "weights": str(cache.header.details["weights"]),
            "pool": spec.pool,
            "precision": spec.precision,
            "crop": spec.preprocess.crop,
            "decode": spec.preprocess.decode,
        },
        metrics=first.metrics[split],
        choice=first.choice,
        seconds=first.seconds,
    )
