"""Images and labels to a head, to predictions, and to one ONNX file, as a classifier."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self, Unpack

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from featx.artifact import Header, describe_environment
from featx.artifact.keywords import by_keyword, record_of
from featx.errors import ConfigError
from featx.estimators.extractor import FeatureExtractor
from featx.estimators.inputs import TakesImages, images_of
from featx.extraction.by_content import Cache
from featx.features.file import open_features
from featx.features.given import in_memory, publish_rows
from featx.heads.head import Head, apply_layers, save_head
from featx.heads.solvers.mlp import MLPOptions
from featx.heads.solvers.sgd import SGDOptions
from featx.heads.tasks import SINGLE_LABEL
from featx.images.decode import MAX_PIXELS, content_digest
from featx.images.given import ImageLike, decode_given, encoded
from featx.images.sources import SPLITS
from featx.stages.export import ExportKeywords, ExportOptions, ExportReport, export_onnx
from featx.training.fitting import fit_heads
from featx.training.options import HeadKind, TrainOptions
from featx.training.record import head_header, made_from

_ANY_MEMORY = 2**62
"""The features are in memory already."""
_OF_THE_EXTRACTOR = ("backbone", "layer", "weights", "image_size", "device", "cache", "progress")


class ImageClassifier(ClassifierMixin, TakesImages, BaseEstimator):  # type: ignore[misc]
    """Classifier of images: features of a pretrained backbone, and a head that ``fit`` trains.

    The head chooses its own regularisation and calibrates its probabilities by cross-validation in
    the images that it is given, as ``featx train-head`` does.

    Args:
        backbone: As of ``FeatureExtractor``.
        head: ``"linear"`` or ``"mlp"``, or the options of one: ``MLPOptions``, ``SGDOptions``, or
            ``TrainOptions`` for all there are.
        layer: As of ``FeatureExtractor``; as are weights, image_size, device, cache and progress.
        class_weight: ``"balanced"``, what an image counts by its class, or None.
        random_state: Decides folds and what is random about a head.

    Attributes:
        classes_: The labels, sorted.
        extractor_: The fitted ``FeatureExtractor``.
        choice_: The hyperparameters that were chosen.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        *,
        head: HeadKind | TrainOptions | MLPOptions | SGDOptions = "linear",
        layer: str | None = None,
        weights: str = "default",
        image_size: int | None = None,
        class_weight: Literal["balanced"] | Mapping[Any, float] | None = None,
        random_state: int | np.random.RandomState | None = 0,
        device: str = "auto",
        cache: Cache = None,
        progress: bool | None = None,
    ) -> None:
        self.backbone = backbone
        self.head = head
        self.layer = layer
        self.weights = weights
        self.image_size = image_size
        self.class_weight = class_weight
        self.random_state = random_state
        self.device = device
        self.cache = cache
        self.progress = progress

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train a head on images, as ``FeatureExtractor`` takes them, and their labels.

        Args:
            X: The images.
            y: The label of each, text or whole numbers, ``(n_images,)``.

        Raises:
            BadImages: Images cannot be used; all of them are named.
            SourceError: The images cannot train a head.
            BackboneError: Backbone or weights cannot be used.
            ConfigError: An option does not fit, something is no image, or the labels are not one
                for each image.
        """
        labels, images = self._labels(y), images_of(X)
        if len(images) != len(labels):
            raise ConfigError(
                f"expected a label for each image; got {len(images)} images and {len(labels)} "
                "labels."
            )
        self.classes_, index = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ConfigError(
                f"all labels are of one class ({self.classes_[0]!r}); a classifier needs two."
            )
        own = {name: getattr(self, name) for name in _OF_THE_EXTRACTOR}
        self.extractor_ = FeatureExtractor(**own).fit(images)
        features, digests = self.extractor_.features_by_content(images)
        self._options = self._train_options()
        rows = in_memory("the images", self._header(), features, labels=index, digests=digests)
        (trained, *_) = fit_heads(rows, self._options)
        self.choice_ = trained.choice
        self._trained = replace(trained, held_out=None)
        self._images, self._index = [_kept(image) for image in images], index
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return probabilities ``(n_images, n_classes)``, calibrated, in the order of ``classes_``.

        Raises:
            FeatxError: As ``FeatureExtractor.transform``.
        """
        check_is_fitted(self)
        return SINGLE_LABEL.probabilities(self._logits(X))

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the most probable label of each image, ``(n_images,)``; raises as above."""
        check_is_fitted(self)
        labels: np.ndarray = self.classes_[self._logits(X).argmax(axis=1)]
        return labels

    @by_keyword(ExportOptions)
    def export(
        self,
        path: str | Path,
        options: ExportOptions | None = None,
        **keywords: Unpack[ExportKeywords],
    ) -> ExportReport:
        """Write one ONNX file from images to probabilities, and prove it on images of ``fit``.

        Args:
            path: The ONNX file; ``featx.Predictor`` reads it.
            options: Inputs, outputs, precision and the rest; ``features``, ``source`` and
                ``weights`` have no effect.
            keywords: The same by name: ``precision="fp16"``.

        Raises:
            ConfigError: The classifier was unpickled, and was not fitted with paths.
            FeatxError: As ``export_onnx``; nothing is written then.
        """
        check_is_fitted(self)
        if any(image is None for image in self._images):
            raise ConfigError(
                "this classifier was loaded without the images in memory that it was fitted with, "
                "and they prove the exported file: export it before it is saved, or fit it with "
                "paths."
            )
        with tempfile.TemporaryDirectory(prefix="featx-") as name:
            folder = Path(name)
            features, head = folder / "features.h5", folder / "head.safetensors"
            names = self._write_images(folder)
            self._write_features(features, folder, names)
            cache = open_features(features)
            inputs = made_from(cache, asdict(replace(self._options, memory=None)))
            weight = self._options.class_weight
            header = head_header(cache, self._trained, inputs, class_weight=weight, more={})
            save_head(head, Head(header, self._trained.layers))
            own = replace(
                record_of(ExportOptions, options, keywords),
                features=features,
                source=str(folder / "images.csv"),
                weights=None,
            )
            return export_onnx(head, path, own)

    def _write_images(self, folder: Path) -> list[str]:
        """Return the path of each image, once it has one, and list them in a table."""
        paths = []
        for place, image in enumerate(self._images):
            if isinstance(image, (str, Path)):
                paths.append(str(PurePosixPath(image)))
                continue
            path = folder / f"{place}.png"
            if isinstance(image, bytes):
                path.write_bytes(image)
            else:
                geometry = self.extractor_.spec_.preprocess
                path.write_bytes(encoded(decode_given(path.name, image, geometry)))
            paths.append(str(path))
        with (folder / "images.csv").open("w", encoding="utf-8", errors="surrogateescape") as file:
            rows = [["path", "label"], *([path, ""] for path in dict.fromkeys(paths))]
            csv.writer(file).writerows(rows)
        return paths

    def _write_features(self, features: Path, folder: Path, paths: Sequence[str]) -> None:
        """Write the feature file that the head is trained on; of an image twice, one row."""
        places = list({path: place for place, path in reversed(list(enumerate(paths)))}.values())
        places.sort()
        values, digests = self.extractor_.features_by_content([self._images[i] for i in places])
        for position, place in enumerate(places):
            if not isinstance(self._images[place], (str, Path, bytes)):
                digests[position] = content_digest(Path(paths[place]).read_bytes())
        publish_rows(
            features,
            self._header(str(folder / "images.csv")),
            values,
            labels=self._index[places],
            digests=digests,
            sample_ids=[paths[place] for place in places],
        )

    def _logits(self, X: Any) -> np.ndarray:  # noqa: N803
        features, _ = self.extractor_.features_by_content(images_of(X))
        return apply_layers(self._trained.layers, features)

    def _labels(self, y: Any) -> np.ndarray:
        if y is None:
            raise ConfigError(
                f"{type(self).__name__} requires y to be passed, but the target y is None: give "
                "the label of each image."
            )
        labels = column_or_1d(y, warn=True)
        check_classification_targets(labels)
        return np.asarray(labels)

    def _train_options(self) -> TrainOptions:
        head = self.head
        if isinstance(head, MLPOptions):
            options = TrainOptions(head="mlp", mlp=head)
        elif isinstance(head, SGDOptions):
            options = TrainOptions(solver="sgd", sgd=head)
        else:
            options = head if isinstance(head, TrainOptions) else TrainOptions(head=head)
        weight = self.class_weight
        if isinstance(weight, Mapping):
            weight = {str(label): value for label, value in weight.items()}
        seed = self.random_state
        if not isinstance(seed, (int, np.integer)):
            seed = check_random_state(seed).randint(2**31 - 1)
        return replace(
            options,
            task="single-label",
            class_weight=options.class_weight if weight is None else weight,
            seed=int(seed),
            memory=_ANY_MEMORY,
        )

    def _header(self, source: str = "") -> Header:
        """Return the header of the features that train the head."""
        extractor = self.extractor_
        return Header(
            kind="features",
            spec=extractor.spec_.to_dict(),
            classes=tuple(map(str, self.classes_.tolist())),
            details={
                "source": source,
                **extractor._details,
                "dtype": "float32",
                "max_pixels": MAX_PIXELS,
                "splits": list(SPLITS),
                "val_fraction": 0.0,
                "own_validation": False,
                "label_kind": "classes",
                "skipped": [],
            },
            environment=describe_environment("torch", "torchvision", "onnxruntime", "pillow"),
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without images in memory."""
        state: dict[str, Any] = super().__getstate__()
        if images := state.get("_images"):
            state = state | {"_images": [i if isinstance(i, (str, Path)) else None for i in images]}
        return state


def _kept(image: ImageLike) -> ImageLike:
    """Return an image as ``export`` needs it: a path that holds in any folder."""
    return str(Path(image).absolute()) if isinstance(image, (str, Path)) else image
