"""Damaged artifacts: read exactly as they were, or refused. Never silently wrong, never a hang.

Each file is read in a process of its own, under limits, as ``featx check`` does it.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featx.errors import ArtifactInvalid
from featx.extraction.options import ExtractOptions
from featx.isolation.call import Limits, call_isolated
from featx.stages.export import ExportOptions, export_onnx
from featx.stages.extract import extract
from featx.stages.train import train_head

CORPUS = Path(__file__).parent / "corpus"
sys.path.insert(0, str(CORPUS))
import damage  # noqa: E402

COUNTS = {"features.h5": 400, "head.safetensors": 200, "model.onnx": 200}
BATCH = 100
SECONDS_PER_BATCH = 60  # each takes one or two: a file that takes this long hangs


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three files of a small run."""
    folder = tmp_path_factory.mktemp("run")
    for number in range(12):
        kind = folder / "photos" / ("ants" if number % 2 else "bees")
        kind.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(kind / f"{number}.png")
    extract(folder / "photos", folder / "features.h5", ExtractOptions(backbone="tiny"))
    train_head(folder / "features.h5", folder / "head.safetensors")
    options = ExportOptions(verify=False)
    export_onnx(folder / "head.safetensors", folder / "model.onnx", options)
    return folder


def outcomes_of(folder: Path) -> dict[str, str]:
    """Return what came of each file of a folder: a hash, the name of an error, or worse."""
    notes = folder / damage.OUTCOMES
    while True:
        try:
            call_isolated("damage:read_all", folder, limits=Limits(2**31, SECONDS_PER_BATCH))
            break
        except ArtifactInvalid as err:  # the last note is open; the others go on without that file
            if not notes.exists() or notes.read_text().endswith("\n"):
                raise
            with notes.open("a") as out:
                out.write("hang\n" if "not done after" in str(err) else "crash\n")
    return dict(line.split(" ", 1) for line in notes.read_text().splitlines())


@pytest.mark.parametrize("name", COUNTS)
def test_damaged_files_are_read_exactly_or_refused(name, artifacts, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(CORPUS))
    whole = artifacts / name
    expected, counts = damage.digest_of(whole), Counter[str]()
    bad: dict[str, str] = {}
    copies = list(damage.damaged(whole.read_bytes(), COUNTS[name]))
    for start in range(0, len(copies), BATCH):
        folder = tmp_path / f"{start}"
        folder.mkdir()
        for copy, content in copies[start : start + BATCH]:
            (folder / f"{copy}{whole.suffix}").write_bytes(content)
        for copy, outcome in outcomes_of(folder).items():
            if outcome == expected:
                counts["intact"] += 1
            elif outcome.startswith("Artifact"):
                counts["refused"] += 1
            else:
                bad[copy] = outcome
    logging.getLogger(__name__).info("%s: %s, bad %s", name, dict(counts), bad)
    assert bad == {}
    assert counts.total() == COUNTS[name]
    assert counts["refused"] >= COUNTS[name] // 2


def test_reading_tells_damage_from_crashes_and_hangs(artifacts, tmp_path, monkeypatch):
    """The test above can fail: crashes, hangs and other values are seen and named."""
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "sitecustomize.py").write_text(
        "import os, time, damage\n"
        "real = damage.digest_of\n"
        "acts = {'1': lambda p: os.abort(), '2': lambda p: time.sleep(99), '3': lambda p: 1 / 0}\n"
        "damage.digest_of = lambda path: acts.get(path.stem, real)(path)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{CORPUS}:{tmp_path / 'odd'}")
    monkeypatch.setattr(sys.modules[__name__], "SECONDS_PER_BATCH", 5)
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.safetensors").write_bytes(
            (artifacts / "head.safetensors").read_bytes()
        )
    (folder / "0.safetensors").write_bytes(b"")
    outcomes = outcomes_of(folder)
    assert outcomes["0.safetensors"] == "ArtifactInvalid"
    assert outcomes["1.safetensors"] == "crash"
    assert outcomes["2.safetensors"] == "hang"
    assert outcomes["3.safetensors"].startswith("escaped:ZeroDivisionError")
    assert outcomes["4.safetensors"] == damage.digest_of(artifacts / "head.safetensors")
