"""The engine protocol, and the choice of engine, device and precision."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np

from featx.backbones.spec import Precision
from featx.errors import ConfigError

if TYPE_CHECKING:
    import torch

EngineName = Literal["torch", "onnxruntime"]
EngineChoice = Literal["auto", "torch", "onnxruntime"]

_BATCH = {"onnxruntime": 2, "torch": 8}
"""Images of 224 pixels squared."""
_GPU_BATCH = 32


_DEVICES = "device must be auto, cpu or cuda[:i]; got '{}'."
_TORCH_ONLY = ("tf32", "bf16", "fp16")
_GPU_ONLY = ("tf32", "fp16")


class Engine(Protocol):
    """Runs a network; several threads may each bring a batch at the same time.

    Attributes:
        name: Of the library.
    """

    name: ClassVar[EngineName]

    @property
    def device(self) -> str:
        """``"cpu"`` or ``"cuda:0"``."""

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return features ``(N, num_features)`` float32 of ``(N, size, size, 3)`` uint8.

        The same batch gives the same bits again.

        Raises:
            BackboneError: The library fails on it.
        """


def default_batch_size(name: EngineName, image_size: int, *, device: str = "cpu") -> int:
    """Return how many images form a batch.

    Depends on nothing but the library, the kind of device and the size of the images, so that the
    same command forms the same batches on every machine. On the CPU a batch takes one thread:
    small ones stay in a core's cache, and leave the other threads less to wait for at the end.

    >>> default_batch_size("onnxruntime", 224), default_batch_size("onnxruntime", 32)
    (2, 64)
    """
    if not device.startswith("cpu"):
        return _GPU_BATCH
    fitting = max(1, _BATCH[name] * 224**2 // image_size**2)
    return min(64, 1 << (fitting.bit_length() - 1))


def require_fit(precision: Precision, choice: EngineChoice, device: str) -> None:
    """Check a combination of options without looking at the machine.

    Raises:
        ConfigError: There is no such combination on any machine.
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

    Args:
        choice: What the user wants.
        device: ``"auto"``, ``"cpu"`` or ``"cuda[:i]"``.
        precision: Of the forward pass; only torch has those between fp32 and int8.

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
    """Return False where torch cannot find a GPU, without loading torch."""
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
    """Return the devices of a choice: every GPU of the machine for ``"cuda"``.

    Raises:
        ConfigError: As ``resolve_device``.
    """
    import torch

    found = resolve_device(device)
    index: int | None = found.index
    if found.type == "cuda" and index is None:
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [str(found)]
