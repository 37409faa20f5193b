"""torch on a real GPU: the bounds, and the same bits whatever runs beside a batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from featx import ExtractOptions, extract, open_features
from featx.backbones.catalog import default_preprocess
from featx.backbones.int8 import cosine
from featx.backbones.network import Network, build_network
from featx.backbones.onnx_graph import MAX_RELATIVE_ERROR, relative_error
from featx.backbones.spec import BackboneSpec
from featx.backbones.torch_engine import SeveralEngine, TorchEngine
from featx.backbones.weights import open_weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is here")


def build(backbone: str, weights: str = "none") -> tuple[Network, BackboneSpec]:
    return build_network(backbone, open_weights(backbone, weights), default_preprocess(backbone))


@pytest.fixture(scope="module", params=["tiny", "resnet18", "vit_b_16"])
def backbone(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_features_are_near_those_of_the_cpu(backbone, precision, pixels):
    batch = pixels(8, default_preprocess(backbone).image_size)
    exact = TorchEngine(build(backbone)[0], device="cpu").features(batch)
    engine = TorchEngine(build(backbone)[0], device="cuda:0", precision=precision)
    found = engine.features(batch)
    assert engine.device == "cuda:0"
    assert (found.dtype, found.shape) == (np.float32, exact.shape)
    assert (relative_error(found, exact) <= MAX_RELATIVE_ERROR) == (precision == "fp32")
    assert cosine(found, exact).min() >= 0.999


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batches_at_the_same_time_get_the_same_bits(backbone, precision, pixels):
    size = default_preprocess(backbone).image_size
    engine = TorchEngine(build(backbone)[0], device="cuda", precision=precision)
    batches = [pixels(8, size, seed=seed) for seed in range(24)]
    expected = [engine.features(batch).tobytes() for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = [features.tobytes() for features in pool.map(engine.features, batches)]
    assert found == expected


def test_engines_of_both_ways_with_float32_keep_out_of_each_others(pixels):
    engines = [
        TorchEngine(build("resnet18")[0], device="cuda", precision=precision)
        for precision in ("fp32", "tf32")
    ]
    batch = pixels(8, 224)
    alone = [engine.features(batch).tobytes() for engine in engines]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: engines[i % 2].features(batch).tobytes(), range(40)))
    assert found == 20 * alone


def test_processes_give_what_one_gives(pixels):
    network, spec = build("resnet18")
    spec = replace(spec, precision="bf16")
    batches = [pixels(8, 224, seed=seed) for seed in range(8)]
    several = SeveralEngine(network, spec, devices=["cuda:0", "cuda:0"])
    with ThreadPoolExecutor(4) as pool:
        found = [features.tobytes() for features in pool.map(several.features, batches)]
    alone = TorchEngine(network, device="cuda:0", precision="bf16")
    assert found == [alone.features(batch).tobytes() for batch in batches]


def test_an_extraction_is_repeated_to_the_bit(pixels, tmp_path):
    from PIL import Image

    (tmp_path / "photos" / "a").mkdir(parents=True)
    for number, image in enumerate(pixels(150, 32)):
        Image.fromarray(image).save(tmp_path / "photos" / "a" / f"{number}.png")
    options = ExtractOptions(backbone="tiny", device="cuda:0", restart=True)
    found = []
    for workers in (1, 5):
        path = tmp_path / f"{workers}.h5"
        report = extract(tmp_path / "photos", path, replace(options, workers=workers))
        assert (report.device, report.engine) == ("cuda:0", "torch")
        found.append(open_features(path).features[:].tobytes())
    assert found[0] == found[1]
