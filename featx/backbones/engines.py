"""Running a frozen network over batches of pixels: one seam, two engines.

- ``onnxruntime`` runs the network's graph on the CPU, without torch. One batch takes one thread,
  and as many batches run at once as there are threads: no thread ever waits for another, and the
  features don't depend on the number of threads.
- ``torch`` runs the network itself, on the CPU or a CUDA GPU.

Both take uint8 ``(N, size, size, 3)``; scaling and normalising are part of the network.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np

from featx.errors import BackboneError, ConfigError

if TYPE_CHECKING:
    import torch

    from featx.backbones.network import Network

EngineName = Literal["torch", "onnxruntime"]
EngineChoice = Literal["auto", "torch", "onnxruntime"]

_DEVICES = "device must be auto, cpu or cuda[:i]; got '{}'."
_BATCH_PIXELS = 4 * 224 * 224


class Engine(Protocol):
    """Runs a network.

    Attributes:
        name: Of the library.
        is_parallel: Several threads may each run a batch at the same time.
    """

    name: ClassVar[EngineName]
    is_parallel: ClassVar[bool]

    @property
    def device(self) -> str:
        """What it runs on: ``"cpu"`` or ``"cuda:0"``."""

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return features ``(N, num_features)`` float32 of ``(N, size, size, 3)`` uint8.

        The same batch gives the same bits again.

        Raises:
            BackboneError: The library fails on it.
        """


def choose_engine(choice: EngineChoice, device: str) -> EngineName:
    """Return what runs a network: ONNX Runtime on the CPU, torch on a GPU, unless told otherwise.

    torch is loaded only where there might be a GPU, or where the device is not simply the CPU.

    Args:
        choice: What the user wants.
        device: ``"auto"``, ``"cpu"`` or ``"cuda[:i]"``.

    Raises:
        ConfigError: The device is not here, or the engine does not run on it.
    """
    if choice == "torch":
        return "torch"
    if choice == "onnxruntime":
        if device in ("auto", "cpu"):
            return "onnxruntime"
        resolve_device(device)  # a wrong name is the first thing to hear of
        raise ConfigError(
            f"the onnxruntime engine runs on the CPU; use --engine torch for device '{device}'."
        )
    if device == "cpu" or (device == "auto" and not may_have_gpu()):
        return "onnxruntime"
    return "torch" if resolve_device(device).type == "cuda" else "onnxruntime"


def may_have_gpu() -> bool:
    """Return False where torch cannot find a GPU, without loading torch."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()  # AMD's, which torch calls "cuda" too
    return True


def default_batch_size(engine: Engine | type[Engine], image_size: int) -> int:
    """Return how many images form a batch.

    Depends on nothing but the engine and the size of the images, so that the same command forms the
    same batches on every machine. ONNX Runtime is as fast at any size, and small batches leave the
    other threads less to wait for at the end. torch needs larger ones for its threads.

    >>> default_batch_size(OnnxEngine, 224), default_batch_size(OnnxEngine, 32)
    (4, 64)
    """
    if engine.is_parallel:
        fitting = max(1, _BATCH_PIXELS // image_size**2)
        return min(64, 1 << (fitting.bit_length() - 1))
    return 32


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
                "--device cpu, or check the driver and torch's CUDA build."
            )
    elif wanted != torch.device("cpu"):
        raise ConfigError(_DEVICES.format(device))
    return wanted


class TorchEngine:
    """Runs a network with torch, in inference mode.

    Args:
        network: Frozen; it is moved to the device.
        device: As ``resolve_device`` takes it.

    Attributes:
        num_threads: That share a batch on the CPU; with another number the last bits differ.

    Raises:
        ConfigError: The device is not here.
    """

    name: ClassVar[EngineName] = "torch"
    is_parallel: ClassVar[bool] = False

    def __init__(self, network: Network, *, device: str = "auto") -> None:
        import torch

        self._device = resolve_device(device)
        self.num_threads = torch.get_num_threads()
        self._network = network.to(memory_format=torch.channels_last).to(self._device)

    @property
    def device(self) -> str:
        """What it runs on."""
        return str(self._device)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return features ``(N, num_features)`` float32 of ``(N, size, size, 3)`` uint8."""
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(self._device)
            features: np.ndarray = self._network(batch).float().cpu().numpy()
            return features


class OnnxEngine:
    """Runs a network's graph with ONNX Runtime, each batch in the thread that brings it.

    Args:
        graph: What ``export_network`` made, serialised.

    Raises:
        BackboneError: ONNX Runtime does not take the graph.
    """

    name: ClassVar[EngineName] = "onnxruntime"
    is_parallel: ClassVar[bool] = True

    def __init__(self, graph: bytes) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            self._session = ort.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except Exception as err:  # ONNX Runtime's errors have no common base below Exception
            raise BackboneError(
                f"ONNX Runtime does not take the backbone's graph: {_first_line(err)} Use --engine "
                "torch."
            ) from err

    @property
    def device(self) -> str:
        """What it runs on."""
        return "cpu"

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return features ``(N, num_features)`` float32 of ``(N, size, size, 3)`` uint8.

        Raises:
            BackboneError: ONNX Runtime fails on it.
        """
        try:
            features: np.ndarray = self._session.run(["features"], {"pixels": pixels})[0]
        except Exception as err:  # as above
            raise BackboneError(
                f"ONNX Runtime cannot run the backbone: {_first_line(err)}"
            ) from err
        return features


def _first_line(err: Exception) -> str:
    return str(err).strip().partition("\n")[0]
