"""Each session is told its number of threads, from the CPUs that the process may use."""

from __future__ import annotations

import os

import onnxruntime as ort
import pytest

import featx
from featx import system
from featx.extraction.options import ExtractOptions
from featx.stages.export import export_onnx
from featx.stages.extract import extract
from featx.stages.train import train_head


@pytest.mark.parametrize("cores", [1, 2])
def test_every_session_has_the_threads_of_the_cpus_that_are_allowed(
    cores, photos, tmp_path, monkeypatch, capfd
):
    threads, plain = [], ort.InferenceSession

    def noted(content, options=None, **how):
        threads.append(options.intra_op_num_threads)  # 0 would be one for each CPU there is
        return plain(content, options, **how)

    monkeypatch.setattr(ort, "InferenceSession", noted)
    monkeypatch.setattr(system, "usable_cores", lambda: cores)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    source = photos({"ants": 6, "bees": 6})
    extract(source, tmp_path / "f.h5", ExtractOptions(backbone="tiny"))
    extracting = len(threads)
    train_head(tmp_path / "f.h5", tmp_path / "h.safetensors", progress=False)
    export_onnx(tmp_path / "h.safetensors", tmp_path / "m.onnx")
    featx.Predictor(tmp_path / "m.onnx").predict([next(source.rglob("*.jpg"))])
    assert 0 < extracting < len(threads)
    assert set(threads) <= {1, cores}
    assert "affinity" not in capfd.readouterr().err
