"""torch, on the CPU, a CUDA GPU, or several of them in a process each."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featx.backbones.engines import EngineName, resolve_device
from featx.backbones.spec import BackboneSpec, Precision
from featx.errors import BackboneError, ConfigError
from featx.images.reading import num_cores
from featx.isolation.processes import Answer, Processes

if TYPE_CHECKING:
    import torch

    from featx.backbones.network import Network, Tail

_STREAMS = 2


class TorchEngine:
    """Runs a network with torch, in inference mode.

    On a GPU two batches are under way, each in a stream of its own: while one is calculated, the
    other is copied there and its operations are queued. On the CPU each batch is calculated by one
    thread, and as many at once as there are cores: none waits for another after every layer, and
    the features don't depend on the number of threads.

    For bf16 and fp16 the weights stay float32 and each operation is cast (autocast), so that
    normalisations, softmax and the arithmetic of the pixels keep float32 where they need it.

    Raises:
        ConfigError: The device is not here, or has no such precision.
    """

    name: ClassVar[EngineName] = "torch"

    def __init__(
        self, network: Tail, *, device: str = "auto", precision: Precision = "fp32"
    ) -> None:
        import torch

        self._device = resolve_device(device)
        if precision == "int8" or (precision in ("tf32", "fp16") and self._device.type == "cpu"):
            raise ConfigError(f"torch has no precision {precision} on '{self._device}'.")
        self._precision = precision
        self._network = network.to(memory_format=torch.channels_last).to(self._device)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # streams don't wait for what was begun before
            new: Any = torch.cuda.Stream  # not typed
            self._streams: queue.SimpleQueue[Any] = queue.SimpleQueue()
            for _ in range(_STREAMS):
                self._streams.put(new(self._device))
        else:
            threads = torch.get_num_threads()
            self._threads = ThreadPoolExecutor(num_cores(), "torch", _calculate_alone, (threads,))

    @property
    def device(self) -> str:
        return str(self._device)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        try:
            if self._device.type == "cpu":
                return self._threads.submit(self._on_cpu, pixels).result()
            return self._on_gpu(pixels)
        except torch.OutOfMemoryError as err:
            raise BackboneError(
                f"The memory of {self.device} does not hold a batch of {len(pixels)} images. Use a "
                "smaller batch_size."
            ) from err

    def _on_cpu(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode(), _arithmetic(self._device, self._precision):
            features: np.ndarray = self._network(torch.from_numpy(pixels)).float().numpy()
        return features

    def _on_gpu(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        stream = self._streams.get()
        try:
            with torch.inference_mode(), torch.cuda.stream(stream):
                # from pinned memory the copy waits for nothing
                batch = torch.from_numpy(pixels).pin_memory().to(self._device, non_blocking=True)
                with _arithmetic(self._device, self._precision):
                    queued = self._network(batch).float()
                features: np.ndarray = queued.cpu().numpy()  # waits for this stream alone
        finally:
            self._streams.put(stream)
        return features


def _calculate_alone(before: int) -> None:
    """Let this thread of torch's share its work with no other."""
    import torch

    torch.get_num_threads()  # what it does for a new thread is done, and not once more later
    torch.set_num_threads(1)
    other = threading.Thread(target=torch.set_num_threads, args=(before,))
    other.start()
    other.join()


def _arithmetic(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return a context in which torch calculates in a precision."""
    import torch

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if half is not None:
        return torch.autocast(device.type, dtype=half)
    return _float32("tf32" if precision == "tf32" else "ieee") if device.type == "cuda" else _AS_IS


_AS_IS = nullcontext()
_SWITCHING = threading.Lock()


@contextmanager
def _float32(mode: str) -> Iterator[None]:
    """Set how a GPU multiplies float32; torch's own default takes tf32 for convolutions.

    The switches are the process's, so one thread at a time queues operations in here.
    """
    import torch

    convolutions: Any = torch.backends.cudnn  # its types miss what is in it
    switches = (convolutions.conv, torch.backends.cuda.matmul)
    with _SWITCHING:
        before = [switch.fp32_precision for switch in switches]
        try:
            for switch in switches:
                switch.fp32_precision = mode
            yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.fp32_precision = value


class SeveralEngine:
    """Runs a network on several devices, each in a process of its own.

    A batch goes to the next process that is free, and to one alone; so its features are those that
    one device gives, and callers get them in whatever order they like. At most one batch for each
    process is under way. Each process builds the network again, with the same weights.

    Raises:
        BackboneError: A process does not start.
    """

    name: ClassVar[EngineName] = "torch"

    def __init__(self, network: Network, spec: BackboneSpec, *, devices: Sequence[str]) -> None:
        weights = _weights_of(network, spec)
        self._devices = tuple(devices)
        self._processes = Processes(
            f"{__name__}:begin",
            [
                (json.dumps({"spec": spec.to_dict(), "device": device}).encode(), weights)
                for device in devices
            ],
            names=[f"for {device}" for device in devices],
            error=BackboneError,
            advice="Run the command again to resume; with a smaller batch_size if it ran out of "
            "memory",
        )
        self._processes.wait()

    @property
    def device(self) -> str:
        return ", ".join(self._devices)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        answer = self._processes.ask(np.ascontiguousarray(pixels).data.cast("B"))
        return np.frombuffer(answer, np.float32).reshape(len(pixels), -1)


def _weights_of(network: Network, spec: BackboneSpec) -> bytes:
    """Return the network's tensors as a safetensors file."""
    from safetensors.torch import save

    from featx.backbones.network import tensors_of

    state = tensors_of(network, spec.backbone, spec.preprocess.image_size)
    return save({name: value.cpu().contiguous().clone() for name, value in state.items()})


# --- in a process -------------------------------------------------------------------------------


def begin(receive: Callable[[], bytes]) -> Answer:
    """Take spec and weights, and return what makes features of pixels."""
    from safetensors.torch import load

    from featx.backbones.network import build_parts

    order = json.loads(receive())
    spec = BackboneSpec.from_dict(order["spec"])
    weights = load(receive())
    resolve_device(order["device"])  # a wrong one is told before the network is built
    network, _ = build_parts(spec, weights)
    engine = TorchEngine(network, device=order["device"], precision=spec.precision)
    size = spec.preprocess.image_size

    def answer(message: bytes) -> bytes:
        pixels = np.frombuffer(bytearray(message), np.uint8)  # torch wants what can be written
        return engine.features(pixels.reshape(-1, size, size, 3)).tobytes()

    return answer
