"""Extraction from S3 where the network fails, and where the process is killed."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from stores import Between, every, put_folder

import featx
from featx.features.file import open_features
from featx.images.sources import objects, remote

OPTIONS = featx.ExtractOptions(backbone="tiny", engine="torch", workers=1, batch_size=8)
COUNT = 200


@pytest.fixture
def many(bucket, tmp_path):
    """A folder of 200 images, also below ``s3://photos/set/``."""
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        path = tmp_path / "many" / "ab"[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    put_folder(bucket, tmp_path / "many", "set/")
    return tmp_path / "many"


@pytest.fixture
def between(s3_server, monkeypatch):
    """A server before S3 that can fail; all requests from now on go through it."""
    server = Between(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.close()


def rows(path):
    file = open_features(path)
    columns = (file.features, file.labels, file.splits, file.digests)
    return file.sample_ids, file.classes, [np.asarray(column).tobytes() for column in columns]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_faults_of_s3_lose_nothing_and_give_nothing_wrong(many, between, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(remote, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(objects, "TIMEOUT_S", 1.0)
    between.faults = every(25)  # of each kind at least one
    report = featx.extract("s3://photos/set/", tmp_path / "s3.h5", OPTIONS)
    assert between.asked.total() > COUNT + 5
    assert (report.num_images, report.skipped) == (COUNT, ())
    between.faults = itertools.repeat("")
    featx.extract(str(many), tmp_path / "local.h5", OPTIONS)
    assert rows(tmp_path / "s3.h5") == rows(tmp_path / "local.h5")


def _hanging(after: int) -> Iterator[str]:
    yield from itertools.repeat("", after)
    yield from itertools.repeat("silence")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_on_s3_that_was_killed_is_resumed_to_the_same_bytes(many, between, tmp_path):
    whole, output = tmp_path / "whole.h5", tmp_path / "f.h5"
    between.faults = _hanging(COUNT // 2)
    command = [sys.executable, "-m", "featx", "extract", "s3://photos/set/", "-o", str(output)]
    command += ["-b", "tiny", "--engine", "torch", "--workers", "1", "--batch-size", "8", "-q"]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    journal, deadline = output.with_name("f.h5.partial"), time.monotonic() + 120
    while time.monotonic() < deadline and not (
        journal.is_file() and journal.stat().st_size > 30 * 192 * 4
    ):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not output.exists()
    between.faults = itertools.repeat("")
    report = featx.extract("s3://photos/set/", output, OPTIONS)
    assert 30 <= report.num_resumed < COUNT
    featx.extract("s3://photos/set/", whole, OPTIONS)
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_functions_run_inside_a_running_event_loop_as_in_a_notebook(many, tmp_path):
    paths = [tmp_path / name for name in ("f.h5", "head.safetensors", "model.onnx")]

    async def cell() -> list[str | None]:
        assert asyncio.get_running_loop().is_running()
        featx.extract("s3://photos/set/", paths[0], OPTIONS)
        featx.train_head(*paths[:2])
        featx.export_onnx(*paths[1:], max_images=8)
        featx.evaluate(paths[2], "s3://photos/set/")
        featx.similar(paths[0], [many / "a" / "000.png"])
        found = featx.Predictor(paths[2]).predict([many / "a" / "000.png"])
        return [prediction.label for prediction in found]

    assert asyncio.run(cell())[0] in ("a", "b")
