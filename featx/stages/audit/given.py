"""Labels that a caller gives in place of those of a feature file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from featx.errors import ConfigError
from featx.features.file import FeatureFile


def with_labels(cache: FeatureFile, labels: Any) -> FeatureFile:
    """Return a feature file with other labels, one for each of its images in its order.

    Args:
        cache: The feature file; its features are read.
        labels: A list, tuple, NumPy array or pandas column of names, or of whole numbers that index
            the classes; None, NaN, "" and -1 are no label.

    Raises:
        ConfigError: It is something else, of another length, or a number is no index.
    """
    if isinstance(labels, (str, bytes, dict)) or not isinstance(labels, Iterable):
        raise _refusal(f"labels of type {type(labels).__name__}")
    if (shape := getattr(labels, "shape", None)) is not None and len(shape) != 1:
        raise _refusal(f"labels of shape {tuple(shape)}")
    found = [_name(each, cache.classes) for each in labels]
    if len(found) != len(cache):
        raise ConfigError(f"labels has {len(found):,} values, but '{cache.path}' {len(cache):,}.")
    new = sorted(set(found).difference(cache.classes, [""]))
    classes = (*cache.classes, *new)
    index = {name: number for number, name in enumerate(classes)} | {"": -1}
    features = cache.features
    made = replace(
        cache,
        labels=np.array([index[name] for name in found], np.int64),
        header=replace(cache.header, classes=classes),
    )
    vars(made)["features"] = features  # the file has another header
    return made


def _name(label: Any, classes: tuple[str, ...]) -> str:
    if isinstance(label, str):
        return str(label)
    if label is None or type(label).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(label, (float, np.floating)) and np.isnan(label):
        return ""
    if isinstance(label, (int, np.integer)) and not isinstance(label, (bool, np.bool_)):
        if not -1 <= label < len(classes):
            raise ConfigError(f"labels has {label}; there are {len(classes)} classes, from 0.")
        return classes[label] if label >= 0 else ""
    raise _refusal(f"a label of type {type(label).__name__}")


def _refusal(got: str) -> ConfigError:
    return ConfigError(
        f"labels takes one name for each image, in a list, NumPy array or pandas column; got {got}."
    )
