"""Images to features, as a transformer."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from featx.backbones.spec import Pool
from featx.estimators.inputs import TakesImages, images_of
from featx.extraction.by_content import Cache, FeaturesByContent
from featx.extraction.options import ExtractOptions
from featx.images.given import ImageLike


class FeatureExtractor(TransformerMixin, TakesImages, BaseEstimator):  # type: ignore[misc]
    """Transformer from images to features of a pretrained backbone.

    Images are paths, encoded images, PIL images, or arrays ``(height, width, 3)`` uint8 RGB, in a
    list, an array, a Series, or a frame of one column. The features of each content are calculated
    once, then taken from the cache, by other fits and other processes as well. Nothing is learnt:
    ``fit`` finds the backbone and its weights.

    Args:
        backbone: As ``featx backbones`` lists them.
        layer: The layer whose output is pooled; None takes the input of the last layer.
        weights: ``"default"`` for pretrained ones, a name, a file, or ``"none"`` for random ones.
        pool: How maps or tokens become a vector.
        image_size: Side of the network's input in pixels; None takes that of the weights.
        device: ``"auto"``, ``"cpu"`` or ``"cuda[:i]"``.
        cache: Folder of cached features, which may be deleted at any time; None is one in the
            user's cache folder, False calculates anew.
        progress: None draws a bar in a terminal or notebook while features are computed, False
            none.

    Attributes:
        spec_: What the features mean.
        n_features_out_: Length of a feature vector.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        *,
        layer: str | None = None,
        weights: str = "default",
        pool: Pool = "auto",
        image_size: int | None = None,
        device: str = "auto",
        cache: Cache = None,
        progress: bool | None = None,
    ) -> None:
        self.backbone = backbone
        self.layer = layer
        self.weights = weights
        self.pool = pool
        self.image_size = image_size
        self.device = device
        self.cache = cache
        self.progress = progress

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Find the backbone and its weights, which may be downloaded.

        Args:
            X: Images; they are not opened.
            y: Has no effect.

        Raises:
            BackboneError: Backbone or weights cannot be used.
            ConfigError: An option does not fit, or something is not an image.
        """
        images_of(X)
        self._by_content = self._open()
        self.spec_, self._details = self._by_content.spec, self._by_content.details
        self.n_features_out_ = self.spec_.num_features
        return self

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the features of images, ``(n_images, n_features_out_)`` float32.

        Raises:
            BadImages: Images cannot be used; all of them are named.
            BackboneError: The weights are gone, or others than those of ``fit``.
            ConfigError: Something is not an image.
        """
        check_is_fitted(self)
        return self.features_by_content(images_of(X))[0]

    def features_by_content(self, images: list[ImageLike]) -> tuple[np.ndarray, list[bytes]]:
        """Return features ``(n, n_features_out_)`` float32, and the digest of each content."""
        return self._opened().features(images)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return a name for each feature, of backbone, layer and number."""
        check_is_fitted(self)
        layer = self.spec_.layer if self.layer is not None else "penultimate"
        names = [f"{self.spec_.backbone}_{layer}_{i}" for i in range(self.n_features_out_)]
        return np.asarray(names, dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_by_content"}

    def _opened(self) -> FeaturesByContent:
        """Return the backbone of ``fit``, opened in this process."""
        if not hasattr(self, "_by_content"):
            self._by_content = self._open().require(self.spec_)
        return self._by_content

    def _open(self) -> FeaturesByContent:
        options = ExtractOptions(
            backbone=self.backbone,
            layer=self.layer,
            weights=str(self.weights),
            pool=self.pool,
            image_size=self.image_size,
            device=self.device,
        )
        return FeaturesByContent(options.resolved(), self.cache, progress=self.progress)
