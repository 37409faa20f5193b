"""torch, on the CPU or a CUDA GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featx.backbones.engines.choice import resolve_device
from featx.backbones.engines.engine import EngineName
from featx.backbones.spec import Precision
from featx.errors import BackboneError, ConfigError

if TYPE_CHECKING:
    import torch

    from featx.backbones.network import Network


class TorchEngine:
    """Runs a network with torch, in inference mode.

    For bf16 and fp16 the weights stay float32 and each operation is cast (autocast), so that
    normalisations, softmax and the arithmetic of the pixels keep float32 where they need it.

    Args:
        network: Frozen; it is moved to the device.
        device: As ``resolve_device`` takes it.
        precision: Any but int8.

    Attributes:
        num_threads: That share a batch on the CPU; with another number the last bits differ.

    Raises:
        ConfigError: The device is not here, or has no such precision.
    """

    name: ClassVar[EngineName] = "torch"
    is_parallel: ClassVar[bool] = False

    def __init__(
        self, network: Network, *, device: str = "auto", precision: Precision = "fp32"
    ) -> None:
        import torch

        self._device = resolve_device(device)
        if precision == "int8" or (precision in ("tf32", "fp16") and self._device.type == "cpu"):
            raise ConfigError(f"torch has no precision {precision} on '{self._device}'.")
        self._precision = precision
        self.num_threads = torch.get_num_threads()
        self._network = network.to(memory_format=torch.channels_last).to(self._device)

    @property
    def device(self) -> str:
        """What it runs on."""
        return str(self._device)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return features ``(N, num_features)`` float32 of ``(N, size, size, 3)`` uint8.

        Raises:
            BackboneError: The GPU fails on it.
        """
        import torch

        batch = torch.from_numpy(pixels)
        try:
            with torch.inference_mode(), _arithmetic(self._device, self._precision):
                if self._device.type == "cuda":  # from pinned memory the copy waits for nothing
                    batch = batch.pin_memory().to(self._device, non_blocking=True)
                features: np.ndarray = self._network(batch).float().cpu().numpy()
        except torch.OutOfMemoryError as err:
            raise BackboneError(
                f"The memory of {self.device} does not hold a batch of {len(pixels)} images. Use a "
                "smaller --batch-size."
            ) from err
        return features


def _arithmetic(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return what makes torch calculate in a precision, as long as it is entered."""
    import torch

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if half is not None:
        return torch.autocast(device.type, dtype=half)
    return _float32("tf32" if precision == "tf32" else "ieee") if device.type == "cuda" else _AS_IS


_AS_IS = nullcontext()


@contextmanager
def _float32(mode: str) -> Iterator[None]:
    """Set how a GPU multiplies float32; torch's own default takes tf32 for convolutions."""
    import torch

    convolutions: Any = torch.backends.cudnn  # its types miss what is in it
    switches = (convolutions.conv, torch.backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = mode
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
