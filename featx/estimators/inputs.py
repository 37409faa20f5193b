"""Images as scikit-learn's users give them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import ConfigError
from featx.images.given import ImageLike, is_image

_EXPECTED = (
    "a list, array or column of paths, or a list of PIL images or of pixels (height, width, 3) "
    "uint8"
)


class TakesImages:
    """Mixin of estimators that take images; left of ``BaseEstimator``, as scikit-learn wants it."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        return tags


def images_of(X: Any) -> list[ImageLike]:  # noqa: N803
    """Return the images of what an estimator was given, checked but for their content.

    Raises:
        ConfigError: That is a single image, empty, or something else than images.
    """
    if isinstance(X, (str, bytes, Path)) or is_image(X):
        raise ConfigError("expected a list of images; put a single one in brackets: [image].")
    if hasattr(X, "iloc") and getattr(X, "ndim", 1) == 2:
        X = X.iloc[:, _only_column(X.shape)]  # noqa: N806
    if isinstance(X, np.ndarray):
        X = _of_array(X)  # noqa: N806
    if hasattr(X, "toarray") or not isinstance(X, Iterable):
        raise ConfigError(f"expected {_EXPECTED}; got {type(X).__name__} (sparse data is none).")
    images = list(X)
    if not images:
        raise ConfigError(
            f"Found array with 0 sample(s): expected {_EXPECTED}, at least one image."
        )
    for position, image in enumerate(images):
        if not (isinstance(image, (str, bytes, Path, np.ndarray)) or is_image(image)):
            raise ConfigError(
                f"image {position}: expected a path, bytes, PIL image or array; got "
                f"{type(image).__name__}."
            )
    return images


def _of_array(array: np.ndarray) -> np.ndarray:
    """Return an array whose first axis is that of the images."""
    if array.dtype.kind in "OUST" and array.ndim == 2:
        array = array[:, _only_column(array.shape)]
    if array.dtype.kind in "OUST" and array.ndim == 1:
        return array
    if array.ndim == 4 or (array.ndim == 1 and not array.size):
        return array
    raise ConfigError(f"expected {_EXPECTED}; got an array {array.shape} of {array.dtype}.")


def _only_column(shape: tuple[int, ...]) -> int:
    if shape[1] != 1:
        raise ConfigError(
            f"expected one column of images; got {shape[1]}. Choose it, as in X[['path']] or by a "
            "ColumnTransformer."
        )
    return 0
