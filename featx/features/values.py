"""Which numbers a feature file may hold: finite ones, as precise as it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from featx.errors import BackboneError, ConfigError

DType = Literal["float32", "float16"]
MAX_FLOAT16_LOSS = 1e-3
"""Largest ‖x − float16(x)‖ / ‖x‖ of a row. Rounding alone gives at most 2⁻¹¹ = 4.9e-4; what is
above has lost small values to underflow."""
_NAMES_SHOWN = 10
_MANY = 8


def require_finite(features: np.ndarray, sample_ids: Sequence[str]) -> None:
    """Check that rows ``(n, num_features)`` hold numbers.

    Raises:
        BackboneError: A value is NaN or infinite; the message names the images.
    """
    bad = [
        name for name, row in zip(sample_ids, features, strict=True) if not np.isfinite(row).all()
    ]
    if bad:
        names = ", ".join(f"'{name}'" for name in bad[:_NAMES_SHOWN])
        more = f" and {len(bad) - _NAMES_SHOWN} more" if len(bad) > _NAMES_SHOWN else ""
        raise BackboneError(
            f"The backbone gives NaN or infinite features for {names}{more}. Check its weights."
        )


def require_no_underflow(features: np.ndarray) -> None:
    """Check that rows ``(n, num_features)`` calculated in fp16 are not all zero.

    Some images may well give zeros, black ones for instance; so fewer than eight pass.

    Raises:
        ConfigError: They are.
    """
    if len(features) >= _MANY and not features.any():
        raise ConfigError(
            f"In fp16 all features of {len(features)} images are zero: there is nothing between 0 "
            "and 6e-08 in float16, and this backbone's numbers seem to be there. Use --precision "
            "bf16."
        )


def require_float16(features: np.ndarray, sample_ids: Sequence[str]) -> None:
    """Check that rows ``(n, num_features)`` survive being stored as float16.

    Raises:
        ConfigError: A value overflows, or a row loses more than ``MAX_FLOAT16_LOSS``.
    """
    if not features.size:
        return
    largest = np.abs(features).max(axis=1)
    if largest.max() > np.finfo(np.float16).max:
        worst = int(largest.argmax())
        raise ConfigError(
            f"float16 holds values up to 65,504, but a feature of '{sample_ids[worst]}' is "
            f"{largest[worst]:.6g}. Use float32."
        )
    rows = features.astype(np.float64)
    lost = np.linalg.norm(rows - features.astype(np.float16), axis=1)
    loss = lost / np.maximum(np.linalg.norm(rows, axis=1), np.finfo(np.float64).tiny)
    if loss.max() > MAX_FLOAT16_LOSS:
        worst = int(loss.argmax())
        raise ConfigError(
            f"float16 would change the features of '{sample_ids[worst]}' by {loss[worst]:.2%} "
            f"(relative, L2), more than the {MAX_FLOAT16_LOSS:.1%} allowed: its values are too "
            "small. Use float32."
        )
