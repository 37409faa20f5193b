"""The make targets that chain the stages, and make again only what has changed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
FILES = ("features.h5", "head.safetensors", "model.onnx")


class Chain:
    """Runs make with its outputs in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.photos = folder / "my photos"
        self.out = folder / "out"
        self.out.mkdir()
        generator = np.random.default_rng(0)
        for number, name in enumerate(("ants", "bees")):
            (self.photos / name).mkdir(parents=True)
            for i in range(12):
                noise = generator.integers(0, 120, (32, 40, 3)) + 100 * number
                Image.fromarray(noise.astype(np.uint8)).save(self.photos / name / f"{i}.jpg")

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        featx = f"{sys.executable} -m featx"
        fixed = (f"OUT={self.out}", f"FEATX={featx}", "READY=Makefile")
        return subprocess.run(
            ["make", *arguments, *fixed], cwd=ROOT, capture_output=True, text=True, check=False
        )

    def times(self) -> dict[str, int]:
        return {name: (self.out / name).stat().st_mtime_ns for name in FILES}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    chain = Chain(tmp_path_factory.mktemp("chain"))
    result = chain.make("onnx", f"DATA={chain.photos}", "BACKBONE=tiny")
    assert result.returncode == 0, result.stdout + result.stderr
    return chain


def test_nothing_changed_does_nothing(chain: Chain) -> None:
    before = chain.times()
    for arguments in ((), (f"DATA={chain.photos}", "BACKBONE=tiny")):
        result = chain.make("onnx", *arguments)
        assert result.returncode == 0, result.stderr
        assert "written" not in result.stdout
        assert chain.times() == before


def test_another_head_leaves_the_features(chain: Chain) -> None:
    before = chain.times()
    result = chain.make("onnx", "TRAIN=-C 0.1")
    assert result.returncode == 0, result.stderr
    after = chain.times()
    assert after["features.h5"] == before["features.h5"]
    assert after["head.safetensors"] > before["head.safetensors"]
    assert after["model.onnx"] > before["model.onnx"]


def test_a_new_image_runs_everything(chain: Chain) -> None:
    before = chain.times()
    shutil.copy(chain.photos / "ants" / "0.jpg", chain.photos / "ants" / "new.jpg")
    result = chain.make("onnx")
    assert result.returncode == 0, result.stderr
    assert all(time > before[name] for name, time in chain.times().items())


def test_without_data_it_says_what_to_do(tmp_path: Path) -> None:
    result = subprocess.run(
        ["make", "onnx", f"OUT={tmp_path}", "READY=Makefile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "make features DATA=photos/ BACKBONE=resnet18" in result.stderr


def test_where_node_cannot_be_installed_the_tests_go_on(tmp_path: Path) -> None:
    for name in ("sh", "dirname", "id"):
        program = shutil.which(name)
        assert program
        (tmp_path / name).symlink_to(program)
    result = subprocess.run(
        ["sh", str(ROOT / "tools" / "clients.sh")],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0
    assert result.stderr == (
        "The tests of onnxruntime-web will skip: install Node and npm to run them.\n"
    )
