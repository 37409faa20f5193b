"""A backbone that is arithmetic, for what happens around it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extractions import as_is, fast_extraction

from featx.backbones.engines import EngineName
from featx.stages import extract as stage

__all__ = ["as_is", "fast_extraction"]


class Arithmetic:
    """Engine and backbone in one: the features of an image are the mean of each channel."""

    def __init__(
        self,
        *,
        wait: Callable[[], float] = float,
        device: str = "cpu",
    ) -> None:
        self.name: EngineName = "onnxruntime"
        self.engine_name = self.name
        self.device = device
        self.seconds = 0.0
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self._wait = wait

    def features(self, pixels: np.ndarray) -> np.ndarray:
        self.batches.append(len(pixels))
        self.threads.add(threading.current_thread().name)
        time.sleep(self._wait())
        return pixels.mean(axis=(1, 2), dtype=np.float32)

    def spec(self) -> Any:
        from featx.backbones.spec import BackboneSpec
        from featx.images.preprocess import PreprocessSpec

        geometry = PreprocessSpec(image_size=8, resize=8, mean=(0.5,) * 3, std=(0.5,) * 3)  # type: ignore[arg-type]
        return BackboneSpec("arithmetic", "0" * 64, "none", "none", 3, geometry)

    def origin(self) -> str:
        return "random:0"

    def is_for_gpu(self) -> bool:
        return self.device != "cpu"

    def engine(self, _expected: Any) -> Arithmetic:
        return self

    def environment(self) -> dict[str, str]:
        return {}


@pytest.fixture
def arithmetic(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Arithmetic]:
    """Return a function that makes extractions use such a backbone, and gives it."""

    def use(**settings: Any) -> Arithmetic:
        backbone = Arithmetic(**settings)
        monkeypatch.setattr(stage, "LazyBackbone", lambda *_: backbone)
        return backbone

    return use


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "featx"
