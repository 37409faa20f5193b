"""Regression: one number or several for each sample."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from featx.errors import SourceError
from featx.heads.samples.statistics import Moments
from featx.heads.tasks.losses import SQUARED
from featx.heads.tasks.scores import RegressionMetrics, TargetScores, bootstrap_intervals
from featx.heads.tasks.task import IMAGES, Column, Details, Labels, Task, joined, quoted
from featx.images.sources.labels import parse_numbers

log = logging.getLogger(__name__)

_COARSE = 0.01
"""Step between numbers of float32, by the deviation of labels, that is too much for them."""


def value_names(count: int) -> tuple[str, ...]:
    """Return names for so many targets.

    >>> value_names(2)
    ('value_1', 'value_2')
    """
    return ("value",) if count == 1 else tuple(f"value_{i}" for i in range(1, count + 1))


def _names(labels: Sequence[str]) -> tuple[str, ...]:
    return value_names(len(next((n for label in labels if (n := parse_numbers(label))), ())))


def _read(labels: Labels, names: Sequence[str] | None) -> np.ndarray:
    """Return the numbers of each sample, ``(N, num_targets)`` float64; NaN where unlabelled."""
    parsed = [parse_numbers(label) for label in labels.classes]
    if bad := _first(labels, [numbers is None for numbers in parsed]):
        raise SourceError(
            f"'{labels.origin}': the label '{bad[0]}' of '{bad[1]}' is not a number to predict. "
            "Expected numbers like 3.5, finite and at most 1e30, several separated by |; correct "
            "the label, or leave it empty."
        )
    used = np.flatnonzero(labels.index >= 0)
    first = parsed[labels.index[used[0]]] if len(used) else None
    count = len(first or (0,)) if names is None else len(names)
    if odd := _first(labels, [n is not None and len(n) != count for n in parsed]):
        raise SourceError(
            f"'{labels.origin}': the label '{odd[0]}' of '{odd[1]}' has "
            f"{odd[0].count('|') + 1} numbers, expected {count} as "
            f"{'others have' if names is None else 'the model has'}."
        )
    table = np.full((len(parsed) + 1, count), np.nan)  # the last: unlabelled
    for row, numbers in enumerate(parsed):
        if numbers is not None and len(numbers) == count:
            table[row] = numbers
    return np.asarray(table[labels.index])


def _first(labels: Labels, among: Sequence[bool]) -> tuple[str, str] | None:
    """Return label and id of the first sample with one of some labels; None if none has."""
    rows = np.flatnonzero(np.isin(labels.index, np.flatnonzero(among)))
    return (
        (labels.classes[labels.index[rows[0]]], labels.sample_ids[rows[0]]) if len(rows) else None
    )


def _canonical(label: str) -> str:
    numbers = parse_numbers(label)
    return label if numbers is None else repr(numbers)


def _require_trainable(values: np.ndarray, names: Sequence[str], origin: str) -> None:
    constant = np.ptp(values, axis=0) == 0
    if constant.all():
        raise SourceError(
            f"'{origin}': all training images have the same numbers; there is nothing to learn."
        )
    if constant.any():
        same = [name for name, hit in zip(names, constant, strict=True) if hit]
        log.warning("All training images have the same %s: always predicted.", quoted(same))
    step = np.spacing(np.abs(values).max(axis=0).astype(np.float32))
    coarse = ~constant & (step > _COARSE * values.std(axis=0))
    if coarse.any():
        far = [name for name, hit in zip(names, coarse, strict=True) if hit]
        log.warning(
            "%s: predictions are float32, which at such numbers goes in steps of %g. Subtract a "
            "constant from the labels.",
            *(quoted(far), step[coarse].max()),
        )


class _Standardised:
    """Numbers with mean 0 and deviation 1."""

    def __init__(self, numbers: np.ndarray, num_targets: int) -> None:
        moments = Moments(num_targets)
        moments.add(numbers)
        self._mean, self._scale = moments.deviation()
        self.values = (numbers - self._mean) / self._scale
        self.num_outputs = num_targets
        self.unit = self._mean.tolist(), self._scale.tolist()

    def decode_layer(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the layer ``(num_targets, in)``, ``(num_targets,)`` that gives raw numbers."""
        raw = weight * self._scale[:, None], bias * self._scale + self._mean
        return raw[0].astype(np.float32), raw[1].astype(np.float32)

    def decode(self, outputs: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return values and targets in the unit of the labels, ``(n, num_targets)`` each."""
        return outputs * self._scale + self._mean, values * self._scale + self._mean


def unit_of(details: Details, num_targets: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of the targets, ``(num_targets,)`` each; else ``ValueError``."""
    try:
        mean, scale = (np.array(details["unit"][name], np.float64) for name in ("mean", "scale"))
    except (TypeError, KeyError, ValueError) as err:
        raise ValueError(f"it does not say the unit of its targets ({err})") from err
    fits = mean.shape == scale.shape == (num_targets,) and np.isfinite(mean).all()
    if not (fits and np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(f"it has no unit for {num_targets} targets")
    return mean, scale


def measure_values(values: np.ndarray, true: np.ndarray) -> RegressionMetrics:
    """Return the scores of labelled samples ``(n, num_targets)``, at least one."""
    values, true = values.astype(np.float64), true.astype(np.float64)
    error, shifted = values - true, true - true.mean(axis=0)  # shifted: for its squares' precision
    targets = true.shape[1]
    statistics = np.concatenate([np.abs(error), error**2, shifted, shifted**2], axis=1)
    varies = np.ptp(true, axis=0) > 0
    mae, rmse, r2 = (
        each[0] for each in _scores_of_means(statistics.mean(axis=0)[None], targets, varies)
    )

    def means(drawn: np.ndarray) -> np.ndarray:
        absolute, _, explained = _scores_of_means(drawn, targets, varies)
        return np.stack([absolute.mean(axis=1), explained[:, varies].mean(axis=1)], axis=1)

    def mae_alone(drawn: np.ndarray) -> np.ndarray:
        return np.asarray(drawn[:, :targets].mean(axis=1, keepdims=True))

    intervals = bootstrap_intervals(statistics, means if varies.any() else mae_alone)
    low, high = intervals[1] if varies.any() else (None, None)
    return RegressionMetrics(
        num_samples=len(true),
        mae=float(mae.mean()),
        mae_low=intervals[0][0],
        mae_high=intervals[0][1],
        rmse=float(rmse.mean()),
        r2=float(r2[varies].mean()) if varies.any() else None,
        r2_low=low,
        r2_high=high,
        per_target=tuple(
            TargetScores(float(mae[i]), float(rmse[i]), float(r2[i]) if varies[i] else None)
            for i in range(targets)
        ),
    )


def _scores_of_means(
    means: np.ndarray, targets: int, varies: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return MAE, RMSE and R², ``(r, num_targets)`` each, NaN where nothing varies.

    The means ``(r, 4 * num_targets)`` are of absolute error, squared error, value and its square.
    """
    absolute, squared, value, square = (means[:, i * targets : (i + 1) * targets] for i in range(4))
    variance = np.where(varies, square - value**2, 0)
    usable = variance > 1e-12 * np.maximum(square, 1e-300)  # more than rounding: a draw may be one
    share = 1 - squared / np.where(usable, variance, 1)
    return absolute, np.sqrt(squared), np.where(usable, share, np.nan)


def _comparable(values: np.ndarray, details: Details) -> np.ndarray:
    mean, scale = unit_of(details, values.shape[1])
    return np.asarray((values - mean) / scale, values.dtype)


def _agree(found: np.ndarray, expected: np.ndarray, details: Details) -> np.ndarray:
    """Return the share of the variance that both have in common."""
    squared = np.square(found.astype(np.float64) - expected).mean(axis=1)
    return np.asarray(np.clip(1 - squared, 0, 1), np.float64)


def _settled(found: np.ndarray, expected: np.ndarray, bound: float, details: Details) -> np.ndarray:
    return np.asarray((np.abs(found - expected) <= bound).all(axis=1))


def _same_untrained(
    found: np.ndarray, expected: np.ndarray, others: np.ndarray, share: float, details: Details
) -> np.ndarray:
    mean, scale = unit_of(details, expected.shape[1])  # values are rounded in the labels' unit
    sizes = np.maximum(1, np.abs(mean / scale))[others]
    return np.asarray((np.abs(found - expected)[:, others] <= share * sizes).all(axis=1))


def _accuracy(values: np.ndarray, true: np.ndarray, details: Details) -> float:
    error, variance = np.square(values - true).mean(axis=0), true.var(axis=0)
    varies = variance > 0
    return float((1 - error[varies] / variance[varies]).mean()) if varies.any() else 0.0


REGRESSION = Task(
    name="regression",
    output="target",
    answer="values",
    other_answer="other values",
    raw_output="values",
    activation=None,
    shift_invariant=False,
    loss=SQUARED,
    solvers=("ridge",),
    has_classes=False,
    not_held_out="they are one group",
    score="R²",
    names_of=_names,
    read_values=_read,
    has=lambda values, output: np.ones(len(values), bool),
    canonical=_canonical,
    knows=lambda label, names: len(parse_numbers(label) or ()) == len(names),
    require_trainable=_require_trainable,
    encode=_Standardised,
    measure_parts=lambda parts, num_outputs, thresholds: measure_values(*joined(parts)),
    statistics=lambda values, true: np.abs(values - true).mean(axis=1, keepdims=True),
    scores=(RegressionMetrics, TargetScores, "per_target"),
    columns=(
        IMAGES,
        Column("MAE", ("mae",), ".4g", is_main=True),
        Column("95 %", ("mae_low", "mae_high"), ".4g", is_main=True),
        Column("RMSE", ("rmse",), ".4g"),
        Column("R²", ("r2",), is_main=True),
        Column("95 %", ("r2_low", "r2_high")),
    ),
    output_columns=(
        Column("MAE", ("mae",), ".4g"),
        Column("RMSE", ("rmse",), ".4g"),
        Column("R²", ("r2",)),
    ),
    rank=lambda scores: (scores.mae, scores.rmse),
    probabilities=lambda values: values,
    logits=lambda values: values,
    comparable=_comparable,
    agree=_agree,
    settled=_settled,
    same_untrained=_same_untrained,
    accuracy=_accuracy,
)
