"""Which engine a run gets, what it remembers, and that torch stays away where it can."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from featx.backbones import engines, onnx_graph
from featx.backbones.engines import OnnxEngine
from featx.backbones.onnx_graph import MAX_RELATIVE_ERROR, relative_error
from featx.backbones.torch_engine import TorchEngine
from featx.errors import BackboneError, ConfigError, ExportError
from featx.extraction.backbone import LazyBackbone
from featx.extraction.options import ExtractOptions
from featx.features.file import open_features
from featx.stages.extract import extract

OTHER: dict[str, Any] = {"backbone": "tiny", "layer": "stage1"}  # comes with no graph


def environment(path: Path) -> dict[str, str]:
    return dict(open_features(path).header.environment)


def test_engines_agree_and_are_provenance_only(photos, tmp_path):
    source = photos()
    reports = [
        extract(source, tmp_path / f"{engine}.h5", ExtractOptions(backbone="tiny", engine=engine))
        for engine in ("torch", "onnxruntime", "auto")
    ]
    assert [report.engine for report in reports] == ["torch", "onnxruntime", "onnxruntime"]
    assert len({report.spec.fingerprint for report in reports}) == 1
    torch_rows, onnx_rows, auto_rows = (open_features(report.path).features for report in reports)
    assert relative_error(onnx_rows, torch_rows) <= MAX_RELATIVE_ERROR
    assert (auto_rows == onnx_rows).all()
    assert environment(tmp_path / "torch.h5")["engine"] == "torch"
    assert environment(tmp_path / "auto.h5")["engine"] == "onnxruntime"
    assert "onnxruntime" in environment(tmp_path / "auto.h5")
    again = ExtractOptions(backbone="tiny", engine="torch")
    assert extract(source, tmp_path / "auto.h5", again).is_unchanged


def test_a_graph_is_built_once(photos, tmp_path, cache, monkeypatch):
    source, options = photos(), ExtractOptions(**OTHER)
    extract(source, tmp_path / "first.h5", options)
    assert len(list(cache.rglob("*.onnx"))) == len(list(cache.rglob("*.json"))) == 1

    def never(*args: object, **settings: object) -> None:
        raise AssertionError

    monkeypatch.setattr(onnx_graph, "build_graph", never)
    monkeypatch.setattr("featx.extraction.backbone.open_backbone", never)
    extract(source, tmp_path / "second.h5", options)
    with h5py.File(tmp_path / "first.h5") as first, h5py.File(tmp_path / "second.h5") as second:
        assert (first["features"][:] == second["features"][:]).all()


def test_a_damaged_graph_is_built_again(photos, tmp_path, cache, caplog):
    source, options = photos(), ExtractOptions(**OTHER)
    extract(source, tmp_path / "first.h5", options)
    (graph,) = cache.rglob("*.onnx")
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-100])
    with caplog.at_level(logging.INFO):
        extract(source, tmp_path / "second.h5", options)
    assert "is not used and made again: it is damaged" in caplog.text
    assert len(graph.read_bytes()) == len(whole)
    first, second = (open_features(tmp_path / f"{n}.h5").features for n in ("first", "second"))
    assert (first == second).all()


def test_a_cache_folder_that_cannot_be_written_is_done_without(photos, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    report = extract(photos(), tmp_path / "f.h5", ExtractOptions(**OTHER))
    assert (report.engine, report.num_extracted) == ("onnxruntime", 12)


def test_weights_that_changed_are_noticed(photos, tmp_path, cache, monkeypatch):
    backbone = LazyBackbone(ExtractOptions(backbone="tiny", weights="none").resolved())
    other = LazyBackbone(ExtractOptions(backbone="tiny", weights="none", seed=1).resolved()).spec()
    with pytest.raises(BackboneError, match="its weights changed meanwhile"):
        backbone.engine(other)


class TestNetworksWithoutAGraph:
    @pytest.fixture(autouse=True)
    def no_graph(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: object, **settings: object) -> None:
            raise ExportError("no such operator")

        monkeypatch.setattr(onnx_graph, "build_graph", refuse)

    def test_torch_runs_them(self, photos, tmp_path, caplog):
        report = extract(photos(), tmp_path / "f.h5", ExtractOptions(**OTHER))
        assert (report.engine, report.device) == ("torch", "cpu")
        assert "torch runs this backbone: no such operator" in caplog.text

    def test_who_asks_for_onnxruntime_hears_why_not(self, photos, tmp_path):
        with pytest.raises(ExportError, match="no such operator"):
            extract(photos(), tmp_path / "f.h5", ExtractOptions(**OTHER, engine="onnxruntime"))


def test_a_wrong_engine_is_refused():
    with pytest.raises(ConfigError, match="engine must be one of auto, torch, onnxruntime"):
        ExtractOptions(engine="tensorrt")  # type: ignore[arg-type]


def test_the_lazy_backbone_gives_what_was_chosen():
    for engine, kind in (("torch", TorchEngine), ("onnxruntime", OnnxEngine)):
        backbone = LazyBackbone(ExtractOptions(backbone="tiny", engine=engine).resolved())  # type: ignore[arg-type]
        assert backbone.device is backbone.engine_name is None
        made = backbone.engine(backbone.spec())
        assert isinstance(made, kind)
        assert made.features(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 192)
        assert (backbone.device, backbone.engine_name) == ("cpu", engine)


def modules_after(*arguments: str) -> set[str]:
    """Return the top-level modules a process has loaded after a command."""
    code = (
        "import json, sys; from featx.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


HEAVY = {"torch", "torchvision", "onnx", "onnxscript", "sklearn", "scipy", "safetensors"}


def test_the_bundled_backbone_never_loads_torch(photos, tmp_path, cache):
    source = str(photos())
    loaded = modules_after("extract", source, "-b", "tiny", "-q", "-o", str(tmp_path / "f.h5"))
    assert not loaded & HEAVY
    assert "onnxruntime" in loaded
    assert not cache.exists()


def test_a_kept_graph_is_run_without_torch_on_another_output(photos, tmp_path, cache):
    source = str(photos())
    command = ("extract", source, "-b", "tiny", "--layer", "stage1", "-q", "-o")
    assert "torch" in modules_after(*command, str(tmp_path / "first.h5"))
    assert not modules_after(*command, str(tmp_path / "second.h5")) & HEAVY


def test_an_interrupted_run_gives_the_same_bytes_with_any_number_of_threads(photos, tmp_path):
    source = photos({"ants": 15, "bees": 16})

    def stop(done: int, total: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    found = []
    for workers in (1, 2, 5):
        path = tmp_path / f"{workers}.h5"
        options = ExtractOptions(backbone="tiny", batch_size=4, workers=workers)
        if workers > 1:
            with pytest.raises(KeyboardInterrupt):
                extract(source, path, options, progress=stop)
            options = replace(options, workers=workers + 1)
            assert extract(source, path, options).num_resumed >= 8
        else:
            extract(source, path, options)
        found.append(path.read_bytes())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("options", "gpu", "expected"),
    [
        ({"device": "auto"}, True, True),
        ({"device": "cuda"}, True, True),
        ({"device": "auto"}, False, False),
        ({"device": "cpu"}, True, False),
        ({"device": "cpu", "engine": "torch"}, True, False),
        ({"device": "auto", "engine": "torch"}, True, True),
        ({"device": "auto", "engine": "onnxruntime"}, True, False),
        ({"device": "auto", "precision": "int8"}, True, False),
        ({"device": "auto", "precision": "bf16"}, True, True),
        ({"device": "auto", "precision": "bf16"}, False, False),
    ],
)
def test_it_knows_before_there_is_an_engine_whether_a_gpu_will_run_it(
    options, gpu, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(gpu))
    monkeypatch.setattr(engines, "may_have_gpu", lambda: gpu)
    backbone = LazyBackbone(ExtractOptions(**OTHER, **options).resolved())
    assert backbone.is_for_gpu() == expected
    assert backbone.device is None


def test_random_weights_are_named_every_time(photos, tmp_path, cache, caplog):
    for number in range(2):
        caplog.clear()
        extract(photos(), tmp_path / f"{number}.h5", ExtractOptions(weights="none", **OTHER))
        assert caplog.text.count("Random weights (seed 0)") == 1
