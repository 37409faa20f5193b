"""What heads say of images that they were not trained on, for every labelled image.

Training images are left out by turns, at the strength that the default head chooses; images of
validation and test are asked of that head. So nothing of these two trains or chooses anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featx.features.file import FeatureFile
from featx.heads.head import Layer, apply_layers
from featx.heads.samples.data import Step, TrainingData, no_step
from featx.heads.samples.folds import choose_num_folds, fold_by_tags, stratified_folds
from featx.heads.solvers.linear import fit_linear
from featx.heads.solvers.ridge import fit_ridge
from featx.heads.tasks import MULTI_LABEL, SINGLE_LABEL, Targets, Task
from featx.heads.tasks.losses import Sigmoid, Softmax
from featx.training.fitting import fit_heads
from featx.training.options import TrainOptions
from featx.training.samples import groups_of, targets_of, training_rows


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Predictions for images, by heads that were not trained on them.

    Attributes:
        targets: Of all rows of the feature file.
        rows: Of the images that have predictions, ascending, ``(n,)``.
        outputs: Calibrated logits, or values of a regression, ``(n, num_outputs)``.
        knows: Which classes or tags the head of each image was trained on, ``(n, num_outputs)``
            bool: of others it cannot say whether they are there.
        num_folds: Parts of the training images that were left out in turn.
        strength: Of the heads.
    """

    targets: Targets
    rows: np.ndarray
    outputs: np.ndarray
    knows: np.ndarray
    num_folds: int
    strength: float


def out_of_fold(
    cache: FeatureFile,
    task: Task,
    *,
    at: tuple[float, float] | None = None,
    seed: int = 0,
    step: Step = no_step,
) -> OutOfFold | None:
    """Return the predictions for each labelled image; None where nothing can be left out.

    The only training image of a class or tag has no prediction: no other one teaches it.

    Args:
        cache: Of vectors, or with the network behind its cut.
        task: As which the labels are read.
        at: Strength and temperature of the heads; training images alone are predicted then. None
            takes those of the default head, which predicts the others.
        seed: Decides which training images are left out together.
        step: Called with the step under way.

    Raises:
        SourceError: The samples cannot train a head.
    """
    targets = targets_of(cache, task)
    rows = training_rows(cache, targets)
    values, groups = targets.values[rows], groups_of(cache, rows)
    folds, num_folds = _divided(values, task, groups, seed)
    if not (folds < num_folds).any():
        return None
    head = None
    if at is None:
        options = TrainOptions(task=task.name, use_views=False, seed=seed)
        (head,) = fit_heads(cache, options, step=step, rows=rows)
        at = head.choice["strength"], head.calibration.temperature if head.calibration else 1.0
    strength, temperature = at
    features, num_outputs = cache.features, len(targets.names)
    outputs = np.full((len(cache), num_outputs), np.nan)
    knows = np.zeros((len(cache), num_outputs), bool)
    for fold in range(num_folds):
        train, out = np.flatnonzero(folds != fold), rows[folds == fold]
        if len(out) and len(train):
            step(f"Part {fold + 1} of {num_folds}")
            chosen = TrainOptions(task=task.name, strengths=(strength,), seed=seed)
            layers = fit_at(features[rows[train]], values[train], num_outputs, task, chosen)
            outputs[out] = apply_layers(layers, features[out]) / temperature
            knows[out] = task.trained_outputs(values[train], num_outputs)
    others = np.flatnonzero(targets.labelled & (cache.splits != 0))
    if head is not None and len(others):
        outputs[others] = apply_layers(head.layers, features[others])
        knows[others] = task.trained_outputs(values, num_outputs)
    known = np.flatnonzero(np.isfinite(outputs).all(axis=1))
    return OutOfFold(targets, known, outputs[known], knows[known], num_folds, strength)


def _divided(
    values: np.ndarray, task: Task, groups: np.ndarray | None, seed: int
) -> tuple[np.ndarray, int]:
    """Return the fold of each training sample, and how many there are."""
    classes = values if task is SINGLE_LABEL else np.zeros(len(values), np.int64)
    num_folds = choose_num_folds(classes, groups=groups)
    if task is MULTI_LABEL:
        return fold_by_tags(values, num_folds, groups=groups, seed=seed), num_folds
    return stratified_folds(classes, num_folds, groups=groups, seed=seed), num_folds


def fit_at(
    features: np.ndarray, values: np.ndarray, num_outputs: int, task: Task, options: TrainOptions
) -> tuple[Layer, ...]:
    """Return the layers of a head at one strength, without holding anything out again.

    Args:
        features: ``(n, num_features)``.
        values: Targets as the task has them, ``(n,)`` or ``(n, num_outputs)``.
        num_outputs: Classes, tags or numbers.
        task: Of the targets.
        options: Their single strength, and the seed.
    """
    encoding = task.encode(values, num_outputs)
    data = TrainingData(features, encoding.values, encoding.num_outputs, np.ones(len(values)))
    if isinstance(task.loss, Softmax | Sigmoid):
        fitted = fit_linear(data, options.strengths, loss=task.loss, seed=options.seed)
    else:
        fitted = fit_ridge(data, options.strengths, seed=options.seed)
    *others, (weight, bias) = fitted.layers
    return (*others, encoding.decode_layer(weight, bias))
