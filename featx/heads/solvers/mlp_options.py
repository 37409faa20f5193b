"""Shape and training of MLPs, and which settings are tried side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from featx.errors import ConfigError
from featx.heads.solvers.networks import Setting


@dataclass(frozen=True)
class MLPOptions:
    """How an MLP head is built and trained.

    Of dropout, learning rate and weight decay several may be given: every combination is trained,
    with every seed.

    Attributes:
        hidden: Width of each hidden layer, first to last.
        dropout: Probability of dropping a hidden unit, in [0, 1).
        learning_rate: AdamW's, at the start of its cosine decay.
        weight_decay: AdamW's.
        num_seeds: Initial weights that are tried.
        batch_size: Samples a step.
        max_epochs: Length of the cosine decay.
        patience: Epochs without a better held-out loss before training stops.

    Raises:
        ConfigError: A value is out of range.
    """

    hidden: tuple[int, ...] = (100,)
    dropout: float | tuple[float, ...] = 0.0
    learning_rate: float | tuple[float, ...] = 1e-3
    weight_decay: float | tuple[float, ...] = 1e-2
    num_seeds: int = 1
    batch_size: int = 128
    max_epochs: int = 100
    patience: int = 10

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"hidden sizes must be at least 1; got {list(self.hidden)}.")
        if not all(0 <= rate < 1 for rate in _several(self.dropout)):
            raise ConfigError(f"dropout must be at least 0 and below 1; got {self.dropout}.")
        rates, decays = _several(self.learning_rate), _several(self.weight_decay)
        if not (all(rate > 0 for rate in rates) and all(decay >= 0 for decay in decays)):
            raise ConfigError(
                f"the learning rate must be above 0 and the weight decay at least 0; got "
                f"{self.learning_rate} and {self.weight_decay}."
            )
        if not (rates and decays and _several(self.dropout)):
            raise ConfigError("there is no learning rate, weight decay or dropout to train with.")
        if min(self.num_seeds, self.batch_size, self.max_epochs, self.patience) < 1:
            raise ConfigError(
                "seeds, batch size, epochs and patience must be at least 1; got "
                f"{self.num_seeds}, {self.batch_size}, {self.max_epochs} and {self.patience}."
            )

    def settings(self, seed: int) -> list[Setting]:
        """Return what each network to be trained has of its own."""
        grid = product(
            _several(self.learning_rate),
            _several(self.weight_decay),
            _several(self.dropout),
            range(self.num_seeds),
        )
        return [Setting((seed, number), *rest) for *rest, number in grid]


def _several(values: float | tuple[float, ...]) -> tuple[float, ...]:
    return tuple(values) if isinstance(values, Sequence) else (values,)


def parse_hidden(text: str | Sequence[int]) -> tuple[int, ...]:
    """Return layer widths from ``"100"`` or ``"256,128"``.

    Raises:
        ConfigError: It is no list of whole numbers.

    >>> parse_hidden("256,128")
    (256, 128)
    """
    try:
        parts = text.split(",") if isinstance(text, str) else text
        return tuple(int(part) for part in parts)
    except ValueError as err:
        raise ConfigError(f"hidden sizes must be like 100 or 256,128; got '{text}'.") from err
