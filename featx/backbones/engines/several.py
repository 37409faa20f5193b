"""torch on several devices: a process for each, fed with batches of pixels."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featx.backbones.engines.choice import resolve_device
from featx.backbones.engines.engine import EngineName
from featx.backbones.engines.with_torch import TorchEngine
from featx.backbones.spec import BackboneSpec
from featx.errors import BackboneError, FeatxError
from featx.isolated import child_environment

if TYPE_CHECKING:
    from featx.backbones.network import Network

_DONE, _FAILED = b"+", b"-"


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
    is_parallel: ClassVar[bool] = True

    def __init__(self, network: Network, spec: BackboneSpec, *, devices: Sequence[str]) -> None:
        weights = _weights_of(network, spec)
        workers = [_Worker(device) for device in devices]
        weakref.finalize(self, _stop, workers)
        for worker in workers:  # all of them build at the same time
            worker.send(json.dumps({"spec": spec.to_dict(), "device": worker.device}).encode())
            worker.send(weights)
        for worker in workers:
            worker.receive()
        self._devices = tuple(devices)
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in workers:
            self._idle.put(worker)

    @property
    def device(self) -> str:
        """What it runs on: ``"cuda:0, cuda:1"``."""
        return ", ".join(self._devices)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return features ``(N, num_features)`` float32 of ``(N, size, size, 3)`` uint8.

        Raises:
            BackboneError: The process that has the batch fails on it, or is gone.
        """
        worker = self._idle.get()
        try:
            worker.send(np.ascontiguousarray(pixels).data.cast("B"))
            answer = worker.receive()
        finally:
            self._idle.put(worker)
        return np.frombuffer(answer, np.float32).reshape(len(pixels), -1)


class _Worker:
    """A process, and this end of the line to it."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._line, other = Pipe()
        command = f"from featx.backbones.engines.several import serve; serve({other.fileno()})"
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(other.fileno(),),
                env=child_environment(),
                process_group=0,  # Ctrl-C is for the caller
            )
        except OSError as err:
            raise BackboneError(f"Cannot start a process for {device}: {err.strerror}.") from err
        finally:
            other.close()

    def send(self, message: bytes | memoryview) -> None:
        """Hand over a message; that nobody takes it shows where the answer is read."""
        with contextlib.suppress(OSError):
            self._line.send_bytes(message)

    def receive(self) -> memoryview:
        """Return the answer.

        Raises:
            BackboneError: It is an error, or there is none.
        """
        try:
            answer = self._line.recv_bytes()
        except (EOFError, OSError) as err:
            raise BackboneError(
                f"The process for {self.device} ended ({self._cause()}). Run the command again to "
                "go on; with a smaller --batch-size if it ran out of memory."
            ) from err
        if answer[:1] != _DONE:
            raise BackboneError(answer[1:].decode("utf-8", "replace"))
        return memoryview(answer)[1:]

    def _cause(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        status = self._process.returncode
        if status is not None and status < 0:
            return signal.Signals(-status).name
        return f"exit code {status}"

    def stop(self) -> None:
        """End the process and wait until it is gone."""
        self._line.close()
        self._process.kill()
        self._process.wait()


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.stop()


def _weights_of(network: Network, spec: BackboneSpec) -> bytes:
    """Return the network's tensors as a safetensors file."""
    from safetensors.torch import save

    from featx.backbones.catalog import build_skeleton

    known = build_skeleton(spec.backbone, spec.preprocess.image_size).state_dict()
    state = network.trunk.state_dict()  # besides its weights, some have constants of the tracing
    return save({name: state[name].cpu().contiguous().clone() for name in state if name in known})


# --- in the worker ------------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """Be the worker: take spec and weights, then batches, until the line ends."""
    with Connection(descriptor) as line, contextlib.suppress(EOFError, OSError):
        try:
            engine, size = _engine(json.loads(line.recv_bytes()), line.recv_bytes())
            answer = _DONE
        except FeatxError as err:
            line.send_bytes(_FAILED + str(err).encode())
            return
        while True:
            line.send_bytes(answer)
            pixels = np.frombuffer(bytearray(line.recv_bytes()), np.uint8)
            try:
                features = engine.features(pixels.reshape(-1, size, size, 3))
                answer = _DONE + np.ascontiguousarray(features, np.float32).tobytes()
            except FeatxError as err:
                answer = _FAILED + str(err).encode()


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
