"""What the products of training run on: numpy, unless a device is asked for.

The seam that ``on_torch`` fills. Only what passes over samples goes through it; searches, choices
and folding stay in numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from featx.heads.solvers.networks import Setting


class AnyNetworks(Protocol):
    """Networks of one shape, as ``dense.Networks``."""

    def __len__(self) -> int:
        """Return how many there are."""

    @property
    def parameters(self) -> np.ndarray:
        """All of them, ``(num_networks, num_parameters)`` float32."""

    def only(self, keep: np.ndarray) -> None:
        """Drop networks; ``keep`` is ``(num_networks,)`` bool."""

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return ``(num_networks, N, num_classes)`` of standardised features ``(N, in)``."""

    def step(self, x: np.ndarray, labels: np.ndarray, shares: np.ndarray, *, pace: float) -> None:
        """Take one step of AdamW on the weighted mean log loss of a batch ``(n, in)``."""


class LogisticPass(Protocol):
    """One evaluation of logistic regressions, summed over blocks of samples."""

    def add(self, x: np.ndarray, labels: np.ndarray, share: np.ndarray) -> None:
        """Take in a block.

        Args:
            x: Samples, ``(n, width)``.
            labels: ``(n,)``.
            share: Of each sample in each problem's loss, ``(p, n)``.
        """

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return losses ``(p,)``, gradients ``(p * k, width)`` by weight, ``(p, k)`` by bias."""


class Device(Protocol):
    """A library that multiplies matrices somewhere."""

    def hold(self, x: np.ndarray) -> Any:
        """Return samples ``(n, width)`` moved there, to be sliced and indexed like an array."""

    def logistic_pass(
        self, columns: np.ndarray, offset: np.ndarray, num_problems: int
    ) -> LogisticPass:
        """Return an evaluation of weights ``(width, p * k)`` and biases ``(p * k, 1)``."""

    def networks(self, widths: Sequence[int], settings: Sequence[Setting]) -> AnyNetworks:
        """Return networks that train there; as ``dense.Networks``."""
