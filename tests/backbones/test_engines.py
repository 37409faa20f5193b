from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from featx.backbones.catalog import default_preprocess
from featx.backbones.engines import TorchEngine, resolve_device
from featx.backbones.network import Network, build_network
from featx.backbones.weights import open_weights
from featx.errors import ConfigError

Pixels = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def network() -> Network:
    return build_network("tiny", open_weights("tiny"), default_preprocess("tiny"))[0]


def _gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_cpu() -> None:
    assert resolve_device("cpu") == torch.device("cpu")


def test_auto_takes_a_gpu_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _gpus(monkeypatch, 0)
    assert resolve_device("auto").type == "cpu"
    _gpus(monkeypatch, 1)
    assert resolve_device("auto").type == "cuda"


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1"])
def test_a_missing_gpu_is_an_error_never_a_fallback(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gpus(monkeypatch, 0)
    with pytest.raises(ConfigError, match=rf"'{device}' was asked for, but torch finds 0 CUDA"):
        resolve_device(device)


def test_gpus_are_counted_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    _gpus(monkeypatch, 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="finds 2 CUDA"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(
    "device", ["bogus", "", "CPU", "cpu:1", "cuda:-1", "cuda:x", "mps", "meta", "gpu", "cuda:1:2"]
)
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=r"device must be auto, cpu or cuda\[:i\]"):
        resolve_device(device)


def test_the_engine_refuses_before_it_moves_anything(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gpus(monkeypatch, 0)
    with pytest.raises(ConfigError):
        TorchEngine(network, device="cuda")


def test_features_are_plain_float32_arrays(network: Network, pixels: Pixels) -> None:
    features = TorchEngine(network, device="cpu").features(pixels(3, 32))
    assert isinstance(features, np.ndarray)
    assert (features.dtype, features.shape) == (np.float32, (3, 192))
    assert np.isfinite(features).all()


def test_the_engine_gives_what_the_network_gives(network: Network, pixels: Pixels) -> None:
    batch = pixels(4, 32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(batch)).numpy()
    found = TorchEngine(network, device="cpu").features(batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_a_repeat_is_identical_to_the_bit(network: Network, pixels: Pixels) -> None:
    engine, batch = TorchEngine(network, device="cpu"), pixels(5, 32)
    assert engine.features(batch).tobytes() == engine.features(batch.copy()).tobytes()


def test_pixels_are_left_as_they_were(network: Network, pixels: Pixels) -> None:
    batch = pixels(2, 32)
    before = batch.copy()
    TorchEngine(network, device="cpu").features(batch)
    np.testing.assert_array_equal(batch, before)
