"""Running a frozen network over batches of pixels.

One engine so far: torch, on the CPU or a CUDA GPU.
"""

from __future__ import annotations

import numpy as np
import torch

from featx.backbones.network import Network
from featx.errors import ConfigError


def resolve_device(device: str) -> torch.device:
    """Return the device for ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises:
        ConfigError: No such device is here; featx never falls back to another one silently.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError as err:
        raise ConfigError(f"device must be auto, cpu or cuda[:i]; got '{device}'.") from err
    if wanted.type == "cuda":
        count = torch.cuda.device_count()
        if (wanted.index or 0) >= count:
            raise ConfigError(
                f"device '{device}' was asked for, but torch finds {count} CUDA GPUs. Use "
                "--device cpu, or check the driver and torch's CUDA build."
            )
    elif wanted != torch.device("cpu"):
        raise ConfigError(f"device must be auto, cpu or cuda[:i]; got '{device}'.")
    return wanted


class TorchEngine:
    """Runs a network with torch, in inference mode.

    Args:
        network: Frozen; it is moved to the device.
        device: As ``resolve_device`` takes it.

    Raises:
        ConfigError: The device is not here.
    """

    def __init__(self, network: Network, *, device: str = "auto") -> None:
        self.device = resolve_device(device)
        self._network = network.to(memory_format=torch.channels_last).to(self.device)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return features ``(N, num_features)`` float32 of ``(N, size, size, 3)`` uint8."""
        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(self.device)
            features: np.ndarray = self._network(batch).float().cpu().numpy()
            return features
