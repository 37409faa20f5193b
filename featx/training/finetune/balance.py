"""Bring probabilities back to the shares of the classes after a training with class weights."""

from __future__ import annotations

import numpy as np

from featx.heads.tasks.calibration import fit_temperature
from featx.heads.tasks.losses import softmax_in_place

_MAX_ROUNDS, _STEPS = 50, 10


def restore_shares(
    logits: np.ndarray, labels: np.ndarray, training_labels: np.ndarray
) -> np.ndarray:
    """Return what to add to held-out logits ``(n, num_classes)``, ``(num_classes,)`` float64.

    With it, and a temperature, the mean probability of each class is its share of the held-out
    labels ``(n,)``, to which the shares in ``training_labels`` ``(N,)`` count as one more sample.
    Classes without training samples stay as they are.

    Source: class weights shift logits by their logarithms, as Saerens, Latinne and Decaestecker,
    "Adjusting the Outputs of a Classifier to New a Priori Probabilities" (2002), have it for other
    shares; here the shift is fitted.
    """
    num_classes = logits.shape[1]
    prior = np.bincount(training_labels, minlength=num_classes) / len(training_labels)
    counts = np.bincount(labels, minlength=num_classes)
    shares, trained = (counts + prior) / (len(labels) + 1), prior > 0
    shift, before = np.zeros(num_classes), 0.0
    for _ in range(_MAX_ROUNDS):
        temperature = fit_temperature(logits + shift, labels)
        if abs(temperature - before) < 1e-4 * temperature:
            break
        before = temperature
        for _ in range(_STEPS):
            likely = softmax_in_place((logits + shift) / temperature).mean(axis=0)
            shift[trained] += temperature * np.log(
                shares[trained] / np.maximum(likely[trained], 1e-12)
            )
    return np.asarray(shift - shift[trained].mean() * trained)
