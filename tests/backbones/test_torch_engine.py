"""One network in several processes: the same bits, and a clear word when one is gone."""

from __future__ import annotations

import os
import signal
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featx.backbones.catalog import default_preprocess
from featx.backbones.engines import default_batch_size
from featx.backbones.network import Network, build_network
from featx.backbones.onnx_graph import MAX_RELATIVE_ERROR, relative_error
from featx.backbones.spec import BackboneSpec
from featx.backbones.torch_engine import SeveralEngine, TorchEngine
from featx.backbones.weights import open_weights
from featx.errors import BackboneError


@pytest.fixture(scope="module")
def built() -> tuple[Network, BackboneSpec]:
    network, spec = build_network("tiny", open_weights("tiny"), default_preprocess("tiny"))
    return network, replace(spec, precision="bf16")


@pytest.fixture(scope="module")
def engine(built: tuple[Network, BackboneSpec]) -> SeveralEngine:
    return SeveralEngine(*built, devices=["cpu", "cpu"])


def processes(engine: SeveralEngine) -> list[int]:
    return [process.pid for process in engine._processes.processes]


def test_they_give_what_one_device_gives(built, engine, pixels):
    batches = [pixels(size, 32, seed=size) for size in (1, 2, 5, 3, 8, 4, 7)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine.features, batches))
    alone = TorchEngine(built[0], device="cpu", precision="bf16")
    exact = TorchEngine(built[0], device="cpu")
    for features, batch in zip(found, batches, strict=True):
        assert features.dtype == np.float32
        assert features.tobytes() == engine.features(batch).tobytes()  # whoever has it now
        np.testing.assert_allclose(features, alone.features(batch), rtol=0.05, atol=0.05)
        assert relative_error(features, exact.features(batch)) > MAX_RELATIVE_ERROR


def test_what_it_says_of_itself(engine):
    assert (engine.name, engine.device) == ("torch", "cpu, cpu")
    assert default_batch_size(engine.name, 32, device=engine.device) == 64
    assert len(set(processes(engine))) == 2


def test_what_a_worker_cannot_do_is_an_error_here(built):
    with pytest.raises(BackboneError, match="device must be auto, cpu or cuda"):
        SeveralEngine(*built, devices=["nowhere"])


def test_a_worker_that_dies_is_an_error_and_none_outlives_the_engine(built, pixels):
    engine, batch = SeveralEngine(*built, devices=["cpu", "cpu"]), pixels(2, 32)
    pids, gone = processes(engine), weakref.ref(engine)
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(BackboneError, match=r"process for cpu ended \(SIGKILL\)\. Run the com"):
        engine.features(batch)
    assert engine.features(batch).shape == (2, 192)  # the other one is well
    with pytest.raises(BackboneError, match="ended"):
        engine.features(batch)  # the dead one's turn again
    del engine
    assert gone() is None
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
