"""torch on several devices: a process for each, fed with batches of pixels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featx.backbones.engines.choice import resolve_device
from featx.backbones.engines.engine import EngineName
from featx.backbones.engines.with_torch import TorchEngine
from featx.backbones.spec import BackboneSpec
from featx.errors import BackboneError
from featx.isolation.processes import Answer, Processes

if TYPE_CHECKING:
    from featx.backbones.network import Network


class SeveralEngine:
    """Runs a network on several devices, each in a process of its own.

    A batch goes to the next process that is free, and to one alone; so its features are those that
    one device gives, and callers get them in whatever order they like. At most one batch for each
    process is under way.

    Args:
        network: Frozen; stays where it is, each process builds its own with the same weights.
        spec: Of that network; gives the precision.
        devices: As ``resolve_device`` takes them; one may stand there twice.

    Raises:
        BackboneError: A process does not start.
    """

    name: ClassVar[EngineName] = "torch"

    def __init__(self, network: Network, spec: BackboneSpec, *, devices: Sequence[str]) -> None:
        weights = _weights_of(network, spec)
        orders = [{"spec": spec.to_dict(), "device": device} for device in devices]
        self._devices = tuple(devices)
        self._processes = Processes(
            f"{__name__}:begin",
            [(json.dumps(order).encode(), weights) for order in orders],
            names=[f"for {device}" for device in devices],
            error=BackboneError,
            advice="with a smaller --batch-size if it ran out of memory",
        )
        self._processes.wait()

    @property
    def device(self) -> str:
        """What it runs on: ``"cuda:0, cuda:1"``."""
        return ", ".join(self._devices)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return features ``(N, num_features)`` float32 of ``(N, size, size, 3)`` uint8.

        Raises:
            BackboneError: The process that has the batch fails on it, or is gone.
        """
        answer = self._processes.ask(np.ascontiguousarray(pixels).data.cast("B"))
        return np.frombuffer(answer, np.float32).reshape(len(pixels), -1)


def _weights_of(network: Network, spec: BackboneSpec) -> bytes:
    """Return the network's tensors as a safetensors file."""
    from safetensors.torch import save

    from featx.backbones.catalog import build_skeleton

    known = build_skeleton(spec.backbone, spec.preprocess.image_size).state_dict()
    state = network.trunk.state_dict()  # besides its weights, some have constants of the tracing
    return save({name: state[name].cpu().contiguous().clone() for name in state if name in known})


# --- in a process -------------------------------------------------------------------------------


def begin(receive: Callable[[], bytes]) -> Answer:
    """Take spec and weights, and return what makes features of pixels."""
    engine, size = _engine(json.loads(receive()), receive())

    def answer(message: bytes) -> bytes:
        pixels = np.frombuffer(bytearray(message), np.uint8)  # torch wants what can be written
        return engine.features(pixels.reshape(-1, size, size, 3)).tobytes()

    return answer


def _engine(order: Mapping[str, Any], weights: bytes) -> tuple[TorchEngine, int]:
    """Return what the worker runs, and the side of the squares it takes, pixels."""
    from safetensors.torch import load

    from featx.backbones.network import build_network
    from featx.backbones.weights import Weights

    spec = BackboneSpec.from_dict(order["spec"])
    resolve_device(order["device"])
    network, _ = build_network(
        spec.backbone,
        Weights("another process", spec.weights_sha256, load(weights)),
        spec.preprocess,
        layer=spec.layer,
        pool=spec.pool,
    )
    engine = TorchEngine(network, device=order["device"], precision=spec.precision)
    return engine, spec.preprocess.image_size
