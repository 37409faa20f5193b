from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from featx.backbones import engines as engines_module
from featx.backbones import torch_engine
from featx.backbones.catalog import default_preprocess
from featx.backbones.engines import (
    OnnxEngine,
    choose_engine,
    default_batch_size,
    may_have_gpu,
    require_fit,
    resolve_device,
    resolve_devices,
)
from featx.backbones.int8 import cosine
from featx.backbones.network import Network, build_network
from featx.backbones.onnx_graph import MAX_RELATIVE_ERROR, build_graph, relative_error
from featx.backbones.spec import Precision
from featx.backbones.torch_engine import TorchEngine
from featx.backbones.weights import open_weights
from featx.errors import BackboneError, ConfigError


@pytest.fixture(scope="module")
def network() -> Network:
    return build_network("tiny", open_weights("tiny"), default_preprocess("tiny"))[0]


def _gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_cpu():
    assert resolve_device("cpu") == torch.device("cpu")


def test_auto_takes_a_gpu_only_where_there_is_one(monkeypatch):
    _gpus(monkeypatch, 0)
    assert resolve_device("auto").type == "cpu"
    _gpus(monkeypatch, 1)
    assert resolve_device("auto").type == "cuda"


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1"])
def test_a_missing_gpu_is_an_error_never_a_fallback(device, monkeypatch):
    _gpus(monkeypatch, 0)
    with pytest.raises(ConfigError, match=rf"'{device}' was asked for, but torch finds 0 CUDA"):
        resolve_device(device)


def test_gpus_are_counted_from_zero(monkeypatch):
    _gpus(monkeypatch, 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="finds 2 CUDA"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(
    "device", ["bogus", "", "CPU", "cpu:1", "cuda:-1", "cuda:x", "mps", "meta", "gpu", "cuda:1:2"]
)
def test_other_devices_are_refused(device):
    with pytest.raises(ConfigError, match=r"device must be auto, cpu or cuda\[:i\]"):
        resolve_device(device)


def test_the_engine_refuses_before_it_moves_anything(network, monkeypatch):
    _gpus(monkeypatch, 0)
    with pytest.raises(ConfigError):
        TorchEngine(network, device="cuda")


def test_features_are_plain_float32_arrays(network, pixels):
    features = TorchEngine(network, device="cpu").features(pixels(3, 32))
    assert isinstance(features, np.ndarray)
    assert (features.dtype, features.shape) == (np.float32, (3, 192))
    assert np.isfinite(features).all()


def test_the_engine_gives_what_the_network_gives(network, pixels):
    batch = pixels(4, 32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(batch)).numpy()
    found = TorchEngine(network, device="cpu").features(batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_a_repeat_is_identical_to_the_bit(network, pixels):
    engine, batch = TorchEngine(network, device="cpu"), pixels(5, 32)
    assert engine.features(batch).tobytes() == engine.features(batch.copy()).tobytes()


def test_batches_at_the_same_time_get_the_same_bits(network, pixels):
    engine = TorchEngine(network, device="cpu")
    batches = [pixels(4, 32, seed=seed) for seed in range(12)]
    expected = [engine.features(batch).tobytes() for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = [features.tobytes() for features in pool.map(engine.features, batches)]
    assert found == expected


def test_features_do_not_depend_on_torchs_threads(network, pixels):
    before, batch = torch.get_num_threads(), pixels(64, 32)
    found = set()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.add(TorchEngine(network, device="cpu").features(batch).tobytes())
            assert torch.get_num_threads() == threads
            with ThreadPoolExecutor(1) as pool:  # of threads that torch has not seen
                assert pool.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_a_batch_is_calculated_by_one_thread(network, pixels):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        engine = TorchEngine(network, device="cpu")
        engine.features(pixels(1, 32))
        assert engine._threads.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_after_an_error_the_next_batch_is_run(network, pixels):
    engine = TorchEngine(network, device="cpu")
    with pytest.raises(RuntimeError):
        engine.features(pixels(2, 32)[..., :2])
    assert engine.features(pixels(2, 32)).shape == (2, 192)


def test_pixels_are_left_as_they_were(network, pixels):
    batch = pixels(2, 32)
    before = batch.copy()
    TorchEngine(network, device="cpu").features(batch)
    np.testing.assert_array_equal(batch, before)


@pytest.fixture(scope="module")
def graph(network: Network) -> bytes:
    return build_graph(network, image_size=32)


class TestOnnxEngine:
    def test_features_are_plain_float32_arrays(self, graph, pixels):
        engine = OnnxEngine(graph)
        features = engine.features(pixels(3, 32))
        assert isinstance(features, np.ndarray)
        assert (features.dtype, features.shape) == (np.float32, (3, 192))
        assert (engine.name, engine.device) == ("onnxruntime", "cpu")

    def test_a_repeat_is_identical_to_the_bit(self, graph, pixels):
        batch = pixels(5, 32)
        first = OnnxEngine(graph).features(batch).tobytes()
        engine = OnnxEngine(graph)
        assert [engine.features(batch.copy()).tobytes() for _ in range(3)] == 3 * [first]

    def test_batches_at_the_same_time_get_the_same_bits(self, graph, pixels):
        engine = OnnxEngine(graph)
        batches = [pixels(4, 32, seed=seed) for seed in range(24)]
        expected = [engine.features(batch).tobytes() for batch in batches]
        with ThreadPoolExecutor(6) as pool:
            found = [features.tobytes() for features in pool.map(engine.features, batches)]
        assert found == expected

    def test_what_is_no_graph_is_refused(self):
        with pytest.raises(BackboneError, match="ONNX Runtime does not take the backbone's graph"):
            OnnxEngine(b"no graph")

    def test_what_it_cannot_run_is_an_error(self, graph, pixels):
        with pytest.raises(BackboneError, match=r"ONNX Runtime cannot run the backbone: .*pixels"):
            OnnxEngine(graph).features(pixels(1, 16))


def _random_network(backbone: str, size: int) -> Network:
    geometry = default_preprocess(backbone).with_overrides(image_size=size, resize=None, crop=None)
    return build_network(backbone, open_weights(backbone, "none"), geometry)[0]


def _require_agreement(backbone: str, size: int, batch: np.ndarray) -> None:
    network = _random_network(backbone, size)
    graph = build_graph(network, image_size=size)
    found = OnnxEngine(graph).features(batch)
    expected = TorchEngine(network, device="cpu").features(batch)
    assert relative_error(found, expected) <= MAX_RELATIVE_ERROR


@pytest.mark.parametrize("backbone", ["resnet18", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_engines_agree(backbone, pixels):
    _require_agreement(backbone, 64, pixels(3, 64, seed=7))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        *(("mobilenet_v3_small", 64), ("efficientnet_b0", 64), ("densenet121", 64)),
        *(("regnet_y_400mf", 64), ("convnext_tiny", 64), ("swin_t", 64), ("vit_b_16", 224)),
        *(("googlenet", 64), ("mnasnet0_5", 64), ("vgg11_bn", 64), ("alexnet", 96)),
    ],
)
def test_engines_agree_on_many_backbones(backbone, size, pixels):
    _require_agreement(backbone, size, pixels(3, size, seed=7))


class TestChoosingAnEngine:
    @pytest.fixture(autouse=True)
    def no_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engines_module, "may_have_gpu", lambda: False)

    @pytest.mark.parametrize("device", ["auto", "cpu"])
    def test_the_cpu_gets_onnxruntime_unless_told(self, device):
        assert choose_engine("auto", device) == "onnxruntime"
        assert choose_engine("onnxruntime", device) == "onnxruntime"
        assert choose_engine("torch", device) == "torch"

    def test_a_gpu_gets_torch(self, monkeypatch):
        monkeypatch.setattr(engines_module, "may_have_gpu", lambda: True)
        _gpus(monkeypatch, 1)
        assert choose_engine("auto", "auto") == "torch"
        assert choose_engine("auto", "cuda") == "torch"
        assert choose_engine("auto", "cpu") == "onnxruntime"
        _gpus(monkeypatch, 0)
        assert choose_engine("auto", "auto") == "onnxruntime"

    @pytest.mark.parametrize("choice", ["auto", "onnxruntime"])
    def test_other_devices_are_refused(self, choice):
        with pytest.raises(ConfigError, match=r"device must be auto, cpu or cuda\[:i\]"):
            choose_engine(choice, "mps")

    def test_onnxruntime_takes_no_gpu(self, monkeypatch):
        _gpus(monkeypatch, 1)
        with pytest.raises(ConfigError, match="runs on the CPU; use engine='torch' for device"):
            choose_engine("onnxruntime", "cuda")


def test_without_a_driver_there_is_no_gpu(monkeypatch):
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(engines_module.ctypes, "CDLL", missing)
    assert may_have_gpu() == Path("/dev/kfd").exists()
    monkeypatch.setattr(engines_module.ctypes, "CDLL", lambda name: object())
    assert may_have_gpu()


def test_batches_are_smaller_for_larger_images():
    sizes = [default_batch_size("onnxruntime", size) for size in (32, 64, 224, 299, 1024)]
    assert sizes == [64, 16, 2, 1, 1]
    assert [default_batch_size("torch", size) for size in (32, 224, 384)] == [64, 8, 2]
    assert default_batch_size("torch", 224, device="cuda:0, cuda:1") == 32


class TestPrecisions:
    def test_bf16_is_near_float32(self, network, pixels):
        batch = pixels(16, 32)
        exact = TorchEngine(network, device="cpu").features(batch)
        found = TorchEngine(network, device="cpu", precision="bf16").features(batch)
        assert found.dtype == np.float32
        assert cosine(found, exact).min() >= 0.999
        assert relative_error(found, exact) > MAX_RELATIVE_ERROR  # else nothing was changed

    @pytest.mark.parametrize("precision", ["tf32", "fp16", "int8"])
    def test_others_are_not_for_torch_on_the_cpu(self, precision, network):
        with pytest.raises(ConfigError, match=f"torch has no precision {precision} on 'cpu'"):
            TorchEngine(network, device="cpu", precision=precision)

    @pytest.mark.parametrize(
        ("precision", "choice", "device", "text"),
        [
            ("int8", "torch", "auto", "int8 runs with ONNX Runtime; leave out engine='torch'"),
            ("int8", "auto", "cuda", "int8 runs on the CPU, not on device 'cuda'"),
            ("bf16", "onnxruntime", "auto", "bf16 runs with torch; leave out engine='onnxruntime'"),
            ("tf32", "auto", "cpu", "tf32 needs a CUDA GPU; on the CPU there are"),
            ("fp16", "torch", "cpu", "fp16 needs a CUDA GPU; on the CPU there are"),
        ],
    )
    def test_impossible_combinations_are_refused_anywhere(self, precision, choice, device, text):
        with pytest.raises(ConfigError, match=text):
            require_fit(precision, choice, device)
        with pytest.raises(ConfigError, match=text):
            choose_engine(choice, device, precision)

    def test_some_need_a_gpu_that_is_here(self, monkeypatch):
        _gpus(monkeypatch, 0)
        with pytest.raises(ConfigError, match="needs a CUDA GPU, and torch finds none here"):
            choose_engine("auto", "auto", "fp16")
        _gpus(monkeypatch, 1)
        assert choose_engine("auto", "auto", "fp16") == "torch"
        assert choose_engine("auto", "cuda:0", "tf32") == "torch"

    def test_the_precision_chooses_the_engine(self, monkeypatch):
        _gpus(monkeypatch, 0)
        assert choose_engine("auto", "cpu", "bf16") == "torch"
        _gpus(monkeypatch, 1)
        assert choose_engine("auto", "auto", "int8") == "onnxruntime"

    def test_a_gpus_float32_is_set_for_a_batch_and_set_back(self):
        switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
        before = [switch.fp32_precision for switch in switches]
        for precision, mode in (("fp32", "ieee"), ("tf32", "tf32")):
            with torch_engine._arithmetic(torch.device("cuda"), precision):  # type: ignore[arg-type]
                assert [switch.fp32_precision for switch in switches] == [mode, mode]
            assert [switch.fp32_precision for switch in switches] == before

    def test_only_one_thread_at_a_time_sets_them(self):
        def seen(precision: Precision) -> tuple[str, str]:
            with torch_engine._arithmetic(torch.device("cuda"), precision):
                time.sleep(0.001)
                return precision, torch.backends.cuda.matmul.fp32_precision

        with ThreadPoolExecutor(4) as pool:
            found = set(pool.map(seen, 20 * ["fp32", "tf32"]))
        assert found == {("fp32", "ieee"), ("tf32", "tf32")}

    def test_memory_that_is_too_small_is_an_error(self, network, pixels, monkeypatch):
        def full(pixels: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError

        engine = TorchEngine(network, device="cpu")
        monkeypatch.setattr(engine, "_network", full)
        with pytest.raises(BackboneError, match="does not hold a batch of 3 images"):
            engine.features(pixels(3, 32))


def test_cuda_without_a_number_is_every_gpu(monkeypatch):
    _gpus(monkeypatch, 3)
    assert resolve_devices("cuda") == resolve_devices("auto") == ["cuda:0", "cuda:1", "cuda:2"]
    assert resolve_devices("cuda:1") == ["cuda:1"]
    _gpus(monkeypatch, 1)
    assert resolve_devices("cuda") == ["cuda:0"]
    _gpus(monkeypatch, 0)
    assert resolve_devices("auto") == resolve_devices("cpu") == ["cpu"]
