"""Training's products by torch, for a GPU: what ``Device`` asks for.

The mathematics is that of ``logistic`` and ``dense``; only dropout draws other numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from featx.errors import ConfigError
from featx.heads.solvers.networks import BETAS, EPSILON, ROWS_AT_ONCE, Setting, initial_parameters


class Held:
    """Samples on a device.

    Args:
        values: ``(n, width)``.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | np.ndarray) -> torch.Tensor:
        if isinstance(rows, slice):
            return self.values[rows]
        return self.values[torch.from_numpy(rows).to(self.values.device)]


class TorchDevice:
    """Multiplies matrices by torch.

    Args:
        name: Of torch's device, which is here: ``"cuda:0"``.
    """

    def __init__(self, name: str) -> None:
        self._device = torch.device(name)

    def hold(self, x: np.ndarray) -> Held:
        """Return samples ``(n, width)`` moved there.

        Raises:
            ConfigError: They do not fit.
        """
        with _reported(self._device):
            return Held(_moved(x, self._device))

    def logistic_pass(
        self, columns: np.ndarray, offset: np.ndarray, num_problems: int
    ) -> TorchPass:
        """Return an evaluation of weights ``(width, p * k)`` and biases ``(p * k, 1)``."""
        return TorchPass(self._device, columns, offset, num_problems)

    def networks(self, widths: Sequence[int], settings: Sequence[Setting]) -> TorchNetworks:
        """Return networks that train there."""
        return TorchNetworks(self._device, widths, settings)


class TorchPass:
    """One evaluation of logistic regressions, summed over blocks of samples in float64.

    Args:
        device: Where.
        columns: Weights of all problems' classes, ``(width, p * k)``.
        offset: Their biases, ``(p * k, 1)``.
        num_problems: ``p``.
    """

    def __init__(
        self, device: torch.device, columns: np.ndarray, offset: np.ndarray, num_problems: int
    ) -> None:
        self._device, self._p = device, num_problems
        self._columns, self._offset = _moved(columns, device), _moved(offset, device)
        width, outputs = columns.shape
        self._losses = torch.zeros(num_problems, dtype=torch.float64, device=device)
        self._by_weight = torch.zeros((outputs, width), dtype=torch.float64, device=device)
        self._by_bias = torch.zeros(outputs, dtype=torch.float64, device=device)

    def add(self, x: np.ndarray | torch.Tensor, labels: np.ndarray, share: np.ndarray) -> None:
        """Take in a block ``(n, width)``; as ``LogisticPass.add``."""
        with _reported(self._device):
            x, wanted = _moved(x, self._device), _moved(labels, self._device)
            shares = _moved(share, self._device)  # (p, n)
            z = (x @ self._columns).T + self._offset  # (p * k, n)
            likely = z.reshape(self._p, -1, len(x))
            likely = likely - torch.logsumexp(likely, dim=1, keepdim=True)
            own = wanted.expand(self._p, 1, -1)
            self._losses -= (shares * likely.gather(1, own)[:, 0]).double().sum(1)
            residual = likely.exp() * shares[:, None]
            residual.scatter_add_(1, own, -shares[:, None])
            residual = residual.reshape(z.shape)
            self._by_weight += residual @ x
            self._by_bias += residual.sum(1)

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return losses ``(p,)``, gradients ``(p * k, width)`` by weight, ``(p, k)`` by bias."""
        losses, by_weight, by_bias = (
            part.cpu().numpy() for part in (self._losses, self._by_weight, self._by_bias)
        )
        return losses, by_weight, by_bias.reshape(self._p, -1)


class TorchNetworks:
    """Networks of one shape, changed in place by ``step``; as ``dense.Networks``.

    Args:
        device: Where.
        widths: Features, hidden sizes, outputs.
        settings: One for each network.
    """

    def __init__(
        self, device: torch.device, widths: Sequence[int], settings: Sequence[Setting]
    ) -> None:
        self._device, self._widths, self._settings = device, tuple(widths), tuple(settings)
        random = [np.random.default_rng(setting.seed) for setting in settings]
        initial = np.stack([initial_parameters(self._widths, each) for each in random])
        self._parameters = _moved(initial, device)
        self._moments = torch.zeros((2, *initial.shape), device=device)
        self._random = torch.Generator(device).manual_seed(int(random[0].integers(2**62)))
        self._steps = 0

    def __len__(self) -> int:
        return len(self._settings)

    def only(self, keep: np.ndarray) -> None:
        """Drop networks; ``keep`` is ``(num_networks,)`` bool."""
        rows = np.flatnonzero(keep)
        self._settings = tuple(self._settings[row] for row in rows)
        chosen = torch.from_numpy(rows).to(self._device)
        self._parameters = self._parameters[chosen]
        self._moments = self._moments[:, chosen]

    @property
    def parameters(self) -> np.ndarray:
        """All of them, ``(num_networks, num_parameters)`` float32."""
        parameters: np.ndarray = self._parameters.cpu().numpy()
        return parameters

    def logits(self, x: np.ndarray | Held) -> np.ndarray:
        """Return ``(num_networks, N, num_classes)`` of standardised features ``(N, in)``."""
        with torch.no_grad(), _reported(self._device):
            parts = [
                self._outputs(self._parameters, _moved(x[rows], self._device), drop=False).cpu()
                for rows in (
                    slice(start, start + ROWS_AT_ONCE) for start in range(0, len(x), ROWS_AT_ONCE)
                )
            ]
            logits: np.ndarray = torch.cat(parts, dim=1).numpy()
            return logits

    def step(
        self,
        x: np.ndarray | torch.Tensor,
        labels: np.ndarray,
        shares: np.ndarray,
        *,
        pace: float,
    ) -> None:
        """Take one step of AdamW on a batch ``(n, in)``; as ``dense.Networks.step``."""
        with _reported(self._device):
            gradient = self._gradient(*(_moved(part, self._device) for part in (x, labels, shares)))
            self._steps += 1
            rates = self._of_each([s.learning_rate * pace for s in self._settings])
            decays = self._of_each([s.weight_decay for s in self._settings])
            mean, square = self._moments
            mean.lerp_(gradient, 1 - BETAS[0])
            square.lerp_(gradient * gradient, 1 - BETAS[1])
            self._parameters *= 1 - rates * decays
            spread = (square / (1 - BETAS[1] ** self._steps)).sqrt_() + EPSILON
            self._parameters -= rates / (1 - BETAS[0] ** self._steps) * mean / spread

    def _of_each(self, values: Sequence[float]) -> torch.Tensor:
        """Return what each network has of its own, ``(num_networks, 1)``."""
        return torch.tensor(values, dtype=torch.float32, device=self._device)[:, None]

    def _gradient(
        self, x: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor
    ) -> torch.Tensor:
        """Return the gradient of each network's loss by its parameters, shaped as these."""
        parameters = self._parameters.detach().requires_grad_()
        likely = torch.log_softmax(self._outputs(parameters, x, drop=True), dim=-1)
        own = likely.gather(2, labels.expand(len(self), -1)[:, :, None])[:, :, 0]
        (gradient,) = torch.autograd.grad(-(own * shares).sum(), parameters)
        return gradient

    def _outputs(self, parameters: torch.Tensor, x: torch.Tensor, *, drop: bool) -> torch.Tensor:
        """Return ``(num_networks, n, num_classes)``."""
        hidden = x.expand(len(self), *x.shape)
        layers = list(self._layers(parameters))
        for weight, bias in layers[:-1]:
            hidden = torch.baddbmm(bias, hidden, weight).relu()
            if drop and any(setting.dropout for setting in self._settings):
                hidden = hidden * self._kept(hidden)
        weight, bias = layers[-1]
        return torch.baddbmm(bias, hidden, weight)

    def _layers(self, parameters: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield weights ``(m, in, out)`` and biases ``(m, 1, out)``."""
        at = 0
        for inputs, outputs in zip(self._widths, self._widths[1:], strict=False):
            end = at + inputs * outputs
            weight = parameters[:, at:end].reshape(-1, inputs, outputs)
            yield weight, parameters[:, None, end : end + outputs]
            at = end + outputs

    def _kept(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what each unit is multiplied with: 0 where it is dropped."""
        rates = self._of_each([s.dropout for s in self._settings])[:, None]
        chances = torch.rand(hidden.shape, generator=self._random, device=self._device)
        return (chances >= rates) / (1 - rates)


def _moved(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(values))
    return values.to(device)


@contextmanager
def _reported(device: torch.device) -> Iterator[None]:
    """Say so where the device's memory is too small."""
    try:
        yield
    except torch.OutOfMemoryError as err:
        raise ConfigError(
            f"training does not fit into the memory of '{device}'. Use a smaller --memory, so that "
            "features are read in blocks, or --device cpu."
        ) from err
