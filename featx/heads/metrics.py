"""How good a classifier is, from logits and labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featx.errors import ConfigError


@dataclass(frozen=True)
class Metrics:
    """Scores on one split; samples without a label do not count.

    Attributes:
        num_samples: Labelled samples.
        top1: Share whose label has the largest logit, in [0, 1].
        top5: Share whose label is among the five largest; None with five classes or fewer.
        macro_f1: Mean over classes of the F1 score, in [0, 1].
        log_loss: Mean of ``-log p(label)``, nats.
    """

    num_samples: int
    top1: float
    top5: float | None
    macro_f1: float
    log_loss: float

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON values."""
        return asdict(self)


def measure(logits: np.ndarray, labels: np.ndarray) -> Metrics | None:
    """Return the scores of the labelled samples, None if there are none.

    Args:
        logits: ``(num_samples, num_classes)``, floating.
        labels: ``(num_samples,)``, integer; -1 where unlabelled.
    """
    labelled = labels >= 0
    if not labelled.any():
        return None
    logits, labels = logits[labelled].astype(np.float64), labels[labelled]
    return Metrics(
        num_samples=len(labels),
        top1=top_k_accuracy(logits, labels, k=1),
        top5=top_k_accuracy(logits, labels, k=5) if logits.shape[1] > 5 else None,
        macro_f1=macro_f1(logits.argmax(axis=1), labels),
        log_loss=log_loss(logits, labels),
    )


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, *, k: int = 1) -> float:
    """Return the share of samples whose label is among the ``k`` largest logits.

    A tie goes to the smaller class index, so the score never depends on sort order.

    Args:
        logits: Unnormalised class scores, shape ``(num_samples, num_classes)``, floating.
        labels: Class indices in ``[0, num_classes)``, shape ``(num_samples,)``, integer.
        k: Guesses allowed per sample, ``1 <= k <= num_classes``.

    Returns:
        A proportion in ``[0, 1]``.

    Raises:
        ConfigError: ``k`` is outside its range.

    >>> top_k_accuracy(np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]]), np.array([0, 1]), k=2)
    0.5
    """
    num_classes = logits.shape[1]
    if not 1 <= k <= num_classes:
        raise ConfigError(f"k must be 1 to {num_classes} (the number of classes); got {k}.")
    own = np.take_along_axis(logits, labels[:, None], axis=1)  # (N, 1)
    smaller_index = np.arange(num_classes)[None, :] < labels[:, None]
    behind = (logits < own) | ((logits == own) & ~smaller_index)  # itself included; NaN never is
    return float(((~behind).sum(axis=1) < k).mean())


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean F1 score over the classes that occur in labels or predictions.

    Args:
        predicted: Class indices, ``(num_samples,)``.
        labels: Class indices, ``(num_samples,)``.
    """
    confusion = confusion_matrix(predicted, labels)
    hits = np.diag(confusion)
    total = confusion.sum(axis=0) + confusion.sum(axis=1)  # twice F1's denominator
    return float((2 * hits[total > 0] / total[total > 0]).mean())


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return counts ``(size, size)``: rows are labels, columns predictions.

    ``size`` is just enough for the classes that occur.
    """
    size = int(max(predicted.max(), labels.max())) + 1
    counts = np.bincount(labels * size + predicted, minlength=size * size)
    return counts.reshape(size, size)


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of ``-log softmax(logits)[label]``, nats.

    Args:
        logits: ``(num_samples, num_classes)``, floating.
        labels: Class indices, ``(num_samples,)``.
    """
    own = np.take_along_axis(log_softmax(logits), labels[:, None], axis=1)
    return float(-own.mean())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log probabilities, ``(num_samples, num_classes)`` as the logits, without overflow."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalised: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised
