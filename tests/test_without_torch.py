"""What runs where only onnxruntime, numpy, pillow and click are installed.

A virtual environment of its own, into which these packages and what they require are linked, and
featx is copied. Nothing else is there to be imported.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

import featx

PACKAGES = ("onnxruntime", "numpy", "pillow", "click")
ABSENT = (
    *("torch", "torchvision", "h5py", "sklearn", "scipy", "onnx", "onnxscript", "safetensors"),
    *("matplotlib", "pytest"),
)


def required_by(packages: tuple[str, ...]) -> dict[str, metadata.Distribution]:
    """Return the packages and all they require, by their normalised names."""
    found: dict[str, metadata.Distribution] = {}
    waiting = list(packages)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name not in found:
            found[name] = metadata.distribution(name)
            needs = map(Requirement, found[name].requires or ())
            waiting += [n.name for n in needs if not n.marker or n.marker.evaluate({"extra": ""})]
    return found


class Environment:
    """A Python that has the packages and featx.

    Attributes:
        python: Its interpreter.
        folder: Where its commands run: holds ``model.onnx`` and ``photo.jpg``.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        venv.create(root, symlinks=True)
        self.python, self.folder = root / "bin" / "python", folder
        (site,) = root.glob("lib/python*/site-packages")
        for distribution in required_by(PACKAGES).values():
            names = {file.parts[0] for file in distribution.files or ()}
            for name in names - {"..", "__pycache__"}:
                (site / name).symlink_to(str(distribution.locate_file(name)))
        own = Path(featx.__file__).parent
        shutil.copytree(own, site / "featx", ignore=shutil.ignore_patterns("__pycache__"))

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return subprocess.run(
            [self.python, *map(str, arguments)],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def featx(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the command, with warnings as errors."""
        return self.run("-W", "error", "-m", "featx", *arguments)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("folder")
    for number in range(12):
        path = folder / "photos" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50 + number, 40), (90, 20 * number, 30)).save(path)
    featx.extract(folder / "photos", folder / "f.h5", featx.ExtractOptions(backbone="tiny"))
    featx.train_head(folder / "f.h5", folder / "h.safetensors")
    featx.export_onnx(folder / "h.safetensors", folder / "model.onnx")
    shutil.copy(folder / "photos" / "a" / "0.jpg", folder / "photo.jpg")
    return Environment(tmp_path_factory.mktemp("venv"), folder)


def test_the_environment_has_nothing_else(small):
    code = "import importlib.util as u, sys; print(*[n for n in sys.argv[1:] if u.find_spec(n)])"
    assert small.run("-c", code, *ABSENT).stdout.split() == []
    present = ["onnxruntime", "numpy", "PIL", "click", "featx"]
    assert small.run("-c", code, *present).stdout.split() == present
    assert (
        str(Path(featx.__file__).parent) not in small.run("-c", "import featx; print(featx)").stdout
    )


def test_predict_answers_as_it_does_here(small):
    command = ("predict", "model.onnx", "photo.jpg", "photos", "--format", "json")
    here = subprocess.run(
        [sys.executable, "-m", "featx", *command],
        cwd=small.folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    there = small.featx(*command)
    assert there.stderr == ""
    assert json.loads(there.stdout) == json.loads(here.stdout)
    assert len(json.loads(there.stdout)) == 13


@pytest.mark.parametrize("chosen", ["table", "csv", "jsonl"])
def test_predict_in_every_format(small, chosen):
    result = small.featx("predict", "model.onnx", "photo.jpg", "--format", chosen)
    assert (result.returncode, result.stderr) == (0, "")
    assert "photo.jpg" in result.stdout


def test_predict_from_python(small):
    code = (
        "import featx; p = featx.Predictor('model.onnx'); "
        "print(p.classes, *(a.label for a in p.predict(['photo.jpg'] * 40)))"
    )
    result = small.run("-W", "error", "-c", code)
    assert result.returncode == 0, result.stderr
    labels = result.stdout.removeprefix("('a', 'b') ").split()
    assert len(labels) == 40
    assert set(labels) <= {"a", "b"}


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["--help"], "predict"),
        (["--version"], featx.__version__),
        *[([name, "--help"], "Usage") for name in ("extract", "train-head", "export", "predict",
          "evaluate", "report", "check", "info", "backbones")],
        (["info", "model.onnx"], "proof"),
        (["info", "model.onnx", "--json"], '"classifier"'),
        (["check", "model.onnx"], "intact"),
        (["backbones"], "resnet18"),
        (["backbones", "vit", "--json"], "vision_transformer"),
        (["evaluate", "model.onnx", "photos"], "top-1"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_else_runs(small, command, text):
    result = small.featx(*command)
    assert (result.returncode, result.stderr) == (0, "")
    assert text in result.stdout


@pytest.mark.parametrize(
    ("command", "packages"),
    [
        (["extract", "photos", "-b", "tiny", "-o", "new.h5"], "h5py"),
        (["evaluate", "model.onnx", "digits:"], "scikit-learn"),
        (["train-head", "f.h5", "-o", "new.safetensors"], "h5py"),
        (["export", "h.safetensors", "--onnx", "new.onnx"], "onnx torch h5py safetensors"),
        (["check", "f.h5"], "h5py"),
        (["check", "h.safetensors"], "safetensors"),
        (["info", "f.h5"], "h5py"),
        (["info", "h.safetensors"], "safetensors"),
        (["backbones", "resnet18"], "torch"),
        (["report", "h.safetensors"], "h5py safetensors"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_what_needs_more_says_what_to_install(small, command, packages):
    before = sorted(os.listdir(small.folder))
    result = small.featx(*command)
    assert result.returncode == 1, result.stdout
    assert "Traceback" not in result.stderr
    told = re.search(r"needs ([\w-]+), which is not installed: pip install \1\.$", result.stderr)
    assert told, result.stderr
    assert told[1] in packages.split()  # the first that is missed
    assert sorted(os.listdir(small.folder)) == before
