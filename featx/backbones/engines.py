"""Running a frozen network over batches of pixels: the choice of an engine, and ONNX Runtime.

All engines take uint8 ``(N, size, size, 3)``; scaling and normalising are part of the network. On
the CPU one batch takes one thread, and as many batches run at once as are brought: no thread ever
waits for another, and the features don't depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np

from featx.backbones.spec import Precision
from featx.errors import BackboneError, ConfigError, first_line

if TYPE_CHECKING:
    import onnxruntime as ort
    import torch

EngineName = Literal["torch", "onnxruntime", "none"]
EngineChoice = Literal["auto", "torch", "onnxruntime"]

_BATCH = {"onnxruntime": 2, "torch": 8, "none": 8}
"""Images of 224×224 pixels."""
_GPU_BATCH = 32
_DEVICES = "device must be auto, cpu or cuda[:i]; got '{}'."
_TORCH_ONLY = ("tf32", "bf16", "fp16")
_GPU_ONLY = ("tf32", "fp16")

# One MatMulInteger of uint8 (rows, depth) and int8 (depth, columns), as onnx serialises it.
_PRODUCT = (
    b'\x08\x08\x12\x00:P\n\x18\n\x01a\n\x01b\x12\x01c"\rMatMulInteger\x12\x01gZ\x0f\n\x01a\x12\n\n'
    b"\x08\x08\x02\x12\x04\n\x00\n\x00Z\x0f\n\x01b\x12\n\n\x08\x08\x03\x12\x04\n\x00\n\x00b\x0f\n"
    b"\x01c\x12\n\n\x08\x08\x06\x12\x04\n\x00\n\x00B\x04\n\x00\x10\r"
)
_SIDE = 64


class Engine(Protocol):
    """Runs a network; several threads may each bring a batch at the same time."""

    @property
    def name(self) -> EngineName:
        """The library."""

    @property
    def device(self) -> str:
        """``"cpu"`` or ``"cuda:0"``."""

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return features ``(N, num_features)`` float32 of ``(N, size, size, 3)`` uint8.

        A stem gives activations ``(N, *shape)``, which may come flattened. The same batch
        gives the same bits again.

        Raises:
            BackboneError: The library fails on it.
        """


def default_batch_size(name: EngineName, image_size: int, *, device: str = "cpu") -> int:
    """Return how many images form a batch; the same on every machine.

    On the CPU small ones stay in a core's cache, and leave the other threads less to wait for.

    >>> default_batch_size("onnxruntime", 224), default_batch_size("onnxruntime", 32)
    (2, 64)
    """
    if not device.startswith("cpu"):
        return _GPU_BATCH
    fitting = max(1, _BATCH[name] * 224**2 // image_size**2)
    return min(64, 1 << (fitting.bit_length() - 1))


def require_fit(precision: Precision, choice: EngineChoice, device: str) -> None:
    """Check that a combination of options is possible on some machine.

    Raises:
        ConfigError: It is not.
    """
    if precision == "int8" and choice == "torch":
        raise ConfigError("precision int8 runs with ONNX Runtime; leave out engine='torch'.")
    if precision == "int8" and device not in ("auto", "cpu"):
        raise ConfigError(
            f"precision int8 runs on the CPU, not on device '{device}'; use device='cpu', or "
            "precision='bf16' or 'fp16'."
        )
    if precision in _TORCH_ONLY and choice == "onnxruntime":
        raise ConfigError(
            f"precision {precision} runs with torch; leave out engine='onnxruntime', which has "
            "fp32 and int8."
        )
    if precision in _GPU_ONLY and device == "cpu":
        raise ConfigError(
            f"precision {precision} needs a CUDA GPU; on the CPU there are fp32, bf16 and int8."
        )


def choose_engine(choice: EngineChoice, device: str, precision: Precision = "fp32") -> EngineName:
    """Return the library that runs a network: ONNX Runtime on the CPU, torch on a GPU, by default.

    torch is loaded only where there might be a GPU, or where the device is not simply the CPU.

    Raises:
        ConfigError: The device is not here, or the engine does not run on it or at that precision.
    """
    require_fit(precision, choice, device)
    if precision == "int8":
        return "onnxruntime"
    if precision in _GPU_ONLY and resolve_device(device).type != "cuda":
        raise ConfigError(
            f"precision {precision} needs a CUDA GPU, and torch finds none here; on the CPU there "
            "are fp32, bf16 and int8."
        )
    if choice == "torch" or precision in _TORCH_ONLY:
        return "torch"
    if choice == "onnxruntime":
        if device in ("auto", "cpu"):
            return "onnxruntime"
        resolve_device(device)  # a wrong name is the first thing to hear of
        raise ConfigError(
            f"the onnxruntime engine runs on the CPU; use engine='torch' for device '{device}'."
        )
    if device == "cpu" or (device == "auto" and not may_have_gpu()):
        return "onnxruntime"
    return "torch" if resolve_device(device).type == "cuda" else "onnxruntime"


def may_have_gpu() -> bool:
    """Return False where torch cannot find a GPU or is not there, without loading it."""
    if find_spec("torch") is None:
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()  # AMD's, which torch calls "cuda" too
    return True


def resolve_device(device: str) -> torch.device:
    """Return the device for ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises:
        ConfigError: No such device is here; featx never falls back to another one silently.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError as err:
        raise ConfigError(_DEVICES.format(device)) from err
    if wanted.type == "cuda":
        count = torch.cuda.device_count()
        if (wanted.index or 0) >= count:
            raise ConfigError(
                f"device '{device}' was asked for, but torch finds {count} CUDA GPUs. Use "
                "device='cpu', or check the driver and torch's CUDA build."
            )
    elif wanted != torch.device("cpu"):
        raise ConfigError(_DEVICES.format(device))
    return wanted


def resolve_devices(device: str) -> list[str]:
    """Return the devices of a choice: every GPU of the machine for ``"cuda"``."""
    import torch

    found = str(resolve_device(device))
    if found == "cuda":
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [found]


class PixelEngine:
    """Runs no network: pixels are the activations at the cut ``"input"``."""

    name: ClassVar[EngineName] = "none"

    @property
    def device(self) -> str:
        return "cpu"

    def features(self, pixels: np.ndarray) -> np.ndarray:
        return pixels


class SideBySide:
    """Runs several engines of one library and device on the same pixels, one after another.

    Features are those of the first engine, then those of the second, and so on.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = tuple(engines)

    @property
    def name(self) -> EngineName:
        return self._engines[0].name

    @property
    def device(self) -> str:
        return self._engines[0].device

    def features(self, pixels: np.ndarray) -> np.ndarray:
        return np.concatenate([engine.features(pixels) for engine in self._engines], axis=1)


class OnnxEngine:
    """Runs a network's serialised graph with ONNX Runtime, each batch in its caller's thread.

    Raises:
        BackboneError: ONNX Runtime does not take the graph.
    """

    name: ClassVar[EngineName] = "onnxruntime"

    def __init__(self, graph: bytes) -> None:
        import onnxruntime as ort

        try:
            self._session = ort.InferenceSession(
                graph,
                session_options(threads=1),
                providers=["CPUExecutionProvider"],
                enable_fallback=0,
            )
        except Exception as err:  # ONNX Runtime's errors have no common base below Exception
            raise BackboneError(
                f"ONNX Runtime does not take the backbone's graph: {first_line(err)} Use "
                "engine='torch'."
            ) from err

    @property
    def device(self) -> str:
        return "cpu"

    def features(self, pixels: np.ndarray) -> np.ndarray:
        try:
            features: np.ndarray = self._session.run(["features"], {"pixels": pixels})[0]
        except Exception as err:  # as above
            raise BackboneError(f"ONNX Runtime cannot run the backbone: {first_line(err)}") from err
        return features


def session_options(*, threads: int) -> ort.SessionOptions:
    """Return the options of a session whose calls take ``threads`` threads each.

    Without VNNI, x86 processors add pairs of products of uint8 and int8 in 16 bits, which overflow.
    ONNX Runtime can take wider products there. That option also keeps it from using VNNI and AMX
    where they are, at a third of their speed, so it is set only where sums come out wrong. int8
    features are then the same on every processor.
    """
    options = _quiet(threads)
    if not _sums_are_exact():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


@functools.cache
def _sums_are_exact() -> bool:
    """Return whether ONNX Runtime adds up the largest products there are without overflow."""
    import onnxruntime as ort

    session = ort.InferenceSession(_PRODUCT, _quiet(1), providers=["CPUExecutionProvider"])
    largest = np.full((_SIDE, _SIDE), 255, np.uint8), np.full((_SIDE, _SIDE), 127, np.int8)
    (sums,) = session.run(None, dict(zip("ab", largest, strict=True)))
    return bool((sums == 255 * 127 * _SIDE).all())


def _quiet(threads: int) -> ort.SessionOptions:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    return options
