"""Scores of predicted numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from featx.heads.metrics.intervals import bootstrap_intervals


@dataclass(frozen=True)
class TargetScores:
    """How one target did, in its own unit.

    Attributes:
        mae: Mean absolute error.
        rmse: Root of the mean squared error.
        r2: Share of the variance that is explained, at most 1; None where there is no variance.
    """

    mae: float
    rmse: float
    r2: float | None


@dataclass(frozen=True)
class RegressionMetrics:
    """Scores on one split; samples without a label do not count.

    Bounds are those of a 95 % interval
    by bootstrap, always of the same draws.

    Attributes:
        task: What is scored.
        num_samples: Labelled samples.
        mae: Mean absolute error, mean over targets.
        mae_low: Lower bound of ``mae``.
        mae_high: Upper bound of ``mae``.
        rmse: Root of the mean squared error, mean over targets.
        r2: Share of the variance that is explained, mean over the targets that vary; None where
            none does.
        r2_low: Lower bound of ``r2``.
        r2_high: Upper bound of ``r2``.
        per_target: Each target in index order.
    """

    task: ClassVar[Literal["regression"]] = "regression"

    num_samples: int
    mae: float
    mae_low: float
    mae_high: float
    rmse: float
    r2: float | None
    r2_low: float | None
    r2_high: float | None
    per_target: tuple[TargetScores, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON values."""
        values = asdict(self)
        return values | {"per_target": list(values["per_target"])}


def measure_values(values: np.ndarray, true: np.ndarray) -> RegressionMetrics:
    """Return the scores of labelled samples, at least one.

    Args:
        values: Of the head, ``(num_samples, num_targets)``, floating.
        true: ``(num_samples, num_targets)``, floating.
    """
    values, true = values.astype(np.float64), true.astype(np.float64)
    error, shifted = values - true, true - true.mean(axis=0)  # shifted: for its squares' precision
    targets = true.shape[1]
    statistics = np.concatenate([np.abs(error), error**2, shifted, shifted**2], axis=1)
    varies = np.ptp(true, axis=0) > 0
    mae, rmse, r2 = (each[0] for each in _scores(statistics.mean(axis=0)[None], targets, varies))

    def means(drawn: np.ndarray) -> np.ndarray:
        absolute, _, explained = _scores(drawn, targets, varies)
        return np.stack([absolute.mean(axis=1), explained[:, varies].mean(axis=1)], axis=1)

    def mae_alone(drawn: np.ndarray) -> np.ndarray:
        absolute: np.ndarray = drawn[:, :targets].mean(axis=1, keepdims=True)
        return absolute

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


def _scores(
    means: np.ndarray, targets: int, varies: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return MAE, RMSE and R², ``(r, num_targets)`` each, NaN where nothing varies.

    Args:
        means: Of absolute error, squared error, value and squared value of each target, ``(r, 4 *
            num_targets)``.
        targets: Number of them.
        varies: Which of them do, ``(num_targets,)``.
    """
    absolute, squared, value, square = (means[:, i * targets : (i + 1) * targets] for i in range(4))
    variance = np.where(varies, square - value**2, 0)
    usable = variance > 1e-12 * np.maximum(square, 1e-300)  # more than rounding: a draw may be one
    share = 1 - squared / np.where(usable, variance, 1)
    return absolute, np.sqrt(squared), np.where(usable, share, np.nan)
