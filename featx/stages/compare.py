"""compare(): the same head on several caches of the same images: which backbone suits them?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.backbones.spec import BackboneSpec
from featx.errors import ArtifactMismatch, ConfigError
from featx.features.file import FeatureFile, open_features
from featx.heads.metrics import Scores
from featx.heads.tasks import TASKS
from featx.images.sources import SPLITS
from featx.training.fitting import fit_heads
from featx.training.options import TrainOptions
from featx.training.samples import warn_of_leaks
from featx.training.solving import Step


@dataclass(frozen=True)
class ComparedCache:
    """How a head did on the features of one file.

    Attributes:
        path: The feature file.
        backbone: Its name in the catalog.
        weights: Where they came from.
        layer: Node of the backbone that the features were taken from.
        image_size: Input of the backbone, pixels.
        num_features: Length of one feature.
        metrics: Scores of the split that judges.
        choice: The hyperparameters that were chosen, JSON values.
        seconds: Of fitting, without reading.
    """

    path: Path
    backbone: str
    weights: str
    layer: str
    image_size: int
    num_features: int
    metrics: Scores
    choice: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class CompareReport:
    """How a head did on several caches.

    Attributes:
        split: The split whose images judge.
        caches: Of each file, the best first: by top-1, of tags by mean average precision, then by
            log loss; of numbers by mean absolute error.
    """

    split: str
    caches: tuple[ComparedCache, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        rows = [
            asdict(cache) | {"path": str(cache.path), "metrics": cache.metrics.to_dict()}
            for cache in self.caches
        ]
        return {"split": self.split, "caches": rows}


def compare(
    features: Sequence[str | Path],
    options: TrainOptions | None = None,
    *,
    split: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> CompareReport:
    """Return the scores of the same head, trained on each of several feature files.

    Nothing is written. The files must hold features of the same images, so that one score can be
    held against the other.

    Args:
        features: Two files or more; only one is in memory at a time.
        options: Which head and how; None for the default one. With ``few_shot`` the first draw
            counts.
        split: Whose images judge; None for the validation split, or the test split where there is
            no validation.
        progress: Called with what is being done.

    Raises:
        ConfigError: There is nothing to compare, no such split, or an option does not fit.
        ArtifactError: A file cannot be used.
        ArtifactMismatch: Two files differ in images, labels or splits.
        SourceError: The samples cannot train a head.
    """
    paths = [Path(path) for path in features]
    if len(paths) < 2 or len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError(
            f"compare needs two or more feature files, each once; got {', '.join(map(str, paths))}."
        )
    options, tell = options or TrainOptions(), progress or (lambda _: None)
    judge: _Judge | None = None
    compared = []
    for number, path in enumerate(paths, start=1):
        tell(f"Training on {path.name} ({number} of {len(paths)})")
        cache = open_features(path)
        if judge is None:
            judge = _Judge.of(cache, split)
            warn_of_leaks(cache)
        judge.require_same_images(cache)
        step = _step(tell, f"{path.name} ({number} of {len(paths)})")
        compared.append(_train_on(cache, options, judge.split, step))
        del cache  # its features, before the next one's are read
    compared.sort(key=lambda each: TASKS[each.metrics.task].rank(each.metrics))
    return CompareReport(judge.split if judge else "", tuple(compared))


@dataclass(frozen=True, eq=False)
class _Judge:
    """What every file must have in common with the first one.

    Attributes:
        path: The first file, for messages.
        split: Whose images judge.
        classes: Class names in index order.
        columns: Content hash, label and split of each image, by what they are called.
        sample_ids: Of each image.
    """

    path: Path
    split: str
    classes: tuple[str, ...]
    columns: dict[str, np.ndarray]
    sample_ids: tuple[str, ...]

    @classmethod
    def of(cls, cache: FeatureFile, split: str | None) -> _Judge:
        columns = _columns(cache)
        return cls(
            cache.path, _judging_split(cache, split), cache.classes, columns, cache.sample_ids
        )

    def require_same_images(self, cache: FeatureFile) -> None:
        """Check that the images, their labels and splits are those of the first file.

        Raises:
            ArtifactMismatch: They are not; the message says which differ.
        """
        differ = None
        if cache.classes != self.classes:
            differ = "classes"
        elif cache.sample_ids != self.sample_ids:
            differ = "images"
        else:
            own = _columns(cache)
            differ = next((n for n, c in self.columns.items() if not np.array_equal(c, own[n])), "")
        if differ:
            raise ArtifactMismatch(
                cache.path,
                f"'{cache.path}' has other {differ} than '{self.path}', so that their scores "
                "cannot be compared. Extract both from the same source, with the same "
                + ("--val-fraction and --resplit." if differ == "splits" else "--val-fraction."),
            )


def _columns(cache: FeatureFile) -> dict[str, np.ndarray]:
    return {"image contents": cache.digests, "labels": cache.labels, "splits": cache.splits}


def _judging_split(cache: FeatureFile, wanted: str | None) -> str:
    """Return the split whose labelled images judge.

    Raises:
        ConfigError: There is no such split, or it has none.
    """
    labelled = cache.splits[cache.labels >= 0]
    there = [split for split in SPLITS if SPLITS.index(split) in labelled]
    choice = [wanted] if wanted else [split for split in ("val", "test") if split in there]
    if not choice or choice[0] not in there:
        raise ConfigError(
            f"'{cache.path}' has no labelled images in a {wanted or 'validation or test'} split; "
            f"there are {', '.join(there) or 'no labels at all'}. Extract with --val-fraction."
        )
    return choice[0]


def _step(tell: Step, name: str) -> Step:
    return lambda step: tell(f"Training on {name}: {step}")


def _train_on(cache: FeatureFile, options: TrainOptions, split: str, step: Step) -> ComparedCache:
    spec, first = BackboneSpec.from_dict(cache.header.spec), fit_heads(cache, options, step=step)[0]
    return ComparedCache(
        path=cache.path,
        backbone=spec.backbone,
        weights=str(cache.header.details["weights"]),
        layer=spec.layer,
        image_size=spec.preprocess.image_size,
        num_features=cache.num_features,
        metrics=first.metrics[split],
        choice=first.answers.choice,
        seconds=first.seconds,
    )
