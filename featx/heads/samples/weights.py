"""What a sample counts, by its class: for classes of unequal size, or unequal cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from featx.errors import ConfigError

ClassWeight = Literal["balanced"] | Mapping[str, float] | None
"""``"balanced"``, a weight for some class names, or None: each sample counts once."""


def weights_of(labels: np.ndarray, classes: Sequence[str], class_weight: ClassWeight) -> np.ndarray:
    """Return what each sample counts, ``(N,)`` float64.

    Balanced weights are scikit-learn's: the samples of each class count ``N / number of classes``
    together, so that all samples still count ``N``.

    Args:
        labels: Class indices, ``(N,)``.
        classes: Names in index order.
        class_weight: By name; a class without one weighs 1.

    Raises:
        ConfigError: A name is no class, or a weight is not above 0.
    """
    if class_weight is None:
        return np.ones(len(labels))
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ConfigError(
                f"class weight must be 'balanced' or weights by class name; got {class_weight!r}."
            )
        counts = np.bincount(labels, minlength=len(classes))
        balanced: np.ndarray = len(labels) / (np.count_nonzero(counts) * counts[labels])
        return balanced
    unknown = sorted(set(class_weight) - set(classes))
    if unknown:
        raise ConfigError(
            f"class weights name '{unknown[0]}', which is no class; the classes are "
            f"{', '.join(classes[:10])}."
        )
    for name, value in class_weight.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 < value < np.inf):
            raise ConfigError(f"class weights must be above 0; got {value!r} for '{name}'.")
    by_class = np.array([float(class_weight.get(name, 1.0)) for name in classes])
    weights: np.ndarray = by_class[labels]
    return weights
