"""Calibration: one temperature that makes probabilities mean what they say.

Logits are divided by it, which changes no prediction. It is fitted on samples that the head was not
trained on, and folded into the last layer, so that a calibrated head is a head like any other.

Source: Guo et al., "On Calibration of Modern Neural Networks" (2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from featx.heads.samples.folds import HeldOut
from featx.heads.tasks.losses import sigmoid, softmax_in_place

_RANGE = (1e-3, 1e3)
_USUAL = 4.0
"""Temperatures of few samples stay between this and its inverse."""
_MAX_STEPS = 100
_SHARE_ROUNDS, _SHARE_STEPS = 50, 10
_MOST_VALUES, _LEAST_SAMPLES = 2**25, 1000


@dataclass(frozen=True)
class Calibration:
    """A temperature and what it does, on the samples it was fitted on.

    Attributes:
        temperature: What logits are divided by, above 0.
        num_samples: Held-out samples it was fitted on.
        log_loss_before: Of the head as it was trained, nats.
        log_loss_after: With the temperature, nats.
        ece_before: Expected calibration error of the head as it was trained, in [0, 1].
        ece_after: With the temperature, in [0, 1]. Of tags, both count each tag of each sample.
    """

    temperature: float
    num_samples: int
    log_loss_before: float
    log_loss_after: float
    ece_before: float
    ece_after: float


def calibrate(
    held_out: HeldOut,
    fit: Callable[[np.ndarray, np.ndarray], float],
    loss_and_error: Callable[[np.ndarray, np.ndarray], tuple[float, float]],
    prior_samples: int = 0,
) -> Calibration:
    """Return the temperature with the lowest log loss on held-out samples.

    For thousands of classes, evenly spaced samples are enough, and fit into memory. ``fit`` returns
    the best temperature for logits and labels, ``loss_and_error`` their log loss and expected
    calibration error. A temperature of 1 counts as much as ``prior_samples``, so that a few
    samples, which may be right or wrong by chance, don't decide alone.
    """
    count = len(held_out.labels)
    most = max(_LEAST_SAMPLES, _MOST_VALUES // held_out.logits.shape[1])
    rows = np.arange(min(count, most)) * count // min(count, most)
    logits, labels = held_out.logits[rows].astype(np.float64), held_out.labels[rows]
    temperature = fit(logits, labels)
    if prior_samples:
        temperature = _steadied(temperature, len(labels), prior_samples)
    (loss_before, ece_before), (loss_after, ece_after) = (
        loss_and_error(scaled, labels) for scaled in (logits, logits / temperature)
    )
    return Calibration(temperature, len(labels), loss_before, loss_after, ece_before, ece_after)


def _steadied(temperature: float, count: int, prior_samples: int) -> float:
    """Return the mean, by their logarithms, of a temperature and the 1 of the prior samples."""
    usual = min(max(temperature, 1 / _USUAL), _USUAL)
    return float(usual ** (count / (count + prior_samples)))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the lowest log loss, in [0.001, 1000].

    Logits are ``(N, num_classes)``, labels ``(N,)``. A label counts as ``(N + 1) / (N + 2)`` of a
    sample and the other labels share the rest, as Platt (1999) has it: logits that are never wrong
    do not get a temperature of 0.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    own = float(np.take_along_axis(shifted, labels[:, None], axis=1).mean())
    present = np.unique(labels)
    rest = 1 / ((len(labels) + 2) * max(1, len(present) - 1))
    target = own * (1 - rest * len(present)) + rest * float(shifted[:, present].sum(1).mean())

    def derivatives(inverse: float) -> tuple[float, float]:
        likely = np.exp(shifted * inverse)
        likely /= likely.sum(axis=1, keepdims=True)
        expected = (likely * shifted).sum(axis=1)
        curvature = float(((likely * shifted * shifted).sum(axis=1) - expected**2).mean())
        return float(expected.mean()) - target, curvature

    return 1 / _best_inverse(derivatives)


def fit_tag_temperature(logits: np.ndarray, tags: np.ndarray) -> float:
    """Return the temperature of all tags with the lowest log loss, in [0.001, 1000].

    That a sample has a tag counts as ``(N + 1) / (N + 2)``, with ``N`` the samples that do; that it
    lacks the tag likewise.
    """
    z = logits.astype(np.float64)
    having = tags.sum(axis=0, dtype=np.float64)
    target = np.where(tags, (having + 1) / (having + 2), 1 / (len(tags) - having + 2))
    own = float((target * z).mean())

    def derivatives(inverse: float) -> tuple[float, float]:
        likely = sigmoid(z * inverse)
        return float((likely * z).mean()) - own, float((likely * (1 - likely) * z * z).mean())

    return 1 / _best_inverse(derivatives)


def fold_temperature(
    weight: np.ndarray, bias: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return a last layer, ``(out, in)`` and ``(out,)``, with logits divided by the temperature."""
    scaled = (part.astype(np.float64) / temperature for part in (weight, bias))
    weight, bias = (part.astype(np.float32) for part in scaled)
    return weight, bias


def restore_shares(
    logits: np.ndarray, labels: np.ndarray, training_labels: np.ndarray, *, prior_samples: int = 0
) -> np.ndarray:
    """Return the shift of held-out logits ``(n, num_classes)``, ``(num_classes,)`` float64.

    With it, and the temperature that ``calibrate`` then fits, the mean probability of each class is
    its share of the held-out labels ``(n,)``, to which the shares in ``training_labels`` ``(N,)``
    count as one more sample. Classes without training samples stay as they are.

    Source: class weights shift logits by their logarithms, as Saerens, Latinne and Decaestecker,
    "Adjusting the Outputs of a Classifier to New a Priori Probabilities" (2002), have it for other
    shares; here the shift is fitted.
    """
    num_classes = logits.shape[1]
    prior = np.bincount(training_labels, minlength=num_classes) / len(training_labels)
    counts = np.bincount(labels, minlength=num_classes)
    shares, trained = (counts + prior) / (len(labels) + 1), prior > 0
    shift, before = np.zeros(num_classes), 0.0
    for _ in range(_SHARE_ROUNDS):
        temperature = fit_temperature(logits + shift, labels)
        if prior_samples:
            temperature = _steadied(temperature, len(labels), prior_samples)
        if abs(temperature - before) < 1e-4 * temperature:
            break
        before = temperature
        for _ in range(_SHARE_STEPS):
            likely = softmax_in_place((logits + shift) / temperature).mean(axis=0)
            shift[trained] += temperature * np.log(
                shares[trained] / np.maximum(likely[trained], 1e-12)
            )
    return np.asarray(shift - shift[trained].mean() * trained)


def _best_inverse(derivatives: Callable[[float], tuple[float, float]]) -> float:
    """Return the factor in [0.001, 1000] where a convex loss is least, by Newton's method."""
    low, high = 1 / _RANGE[1], 1 / _RANGE[0]
    inverse = 1.0
    for _ in range(_MAX_STEPS):  # inside the bracket
        slope, curvature = derivatives(inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = slope / curvature if curvature > 0 else np.inf
        ahead = inverse - step
        ahead = ahead if low < ahead < high else float(np.sqrt(low * high))
        if abs(ahead - inverse) <= 1e-9 * inverse:
            break
        inverse = ahead
    return float(inverse)
