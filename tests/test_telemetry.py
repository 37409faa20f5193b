"""ONNX Runtime's telemetry is off wherever featx imports it: no files in the home, no sockets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import featx

FEATX = (sys.executable, "-m", "featx")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source of tiny images, and the files of each stage."""
    import numpy as np
    from PIL import Image

    out = tmp_path_factory.mktemp("made")
    for number in range(8):
        pixels = np.full((8, 8, 3), 30 * number, np.uint8)
        path = out / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    featx.extract(out / "photos", out / "f.h5", featx.ExtractOptions(backbone="tiny"))
    featx.train_head(out / "f.h5", out / "h.safetensors", featx.TrainOptions(strengths=(1.0,)))
    featx.export_onnx(out / "h.safetensors", out / "m.onnx")
    return out


def left_by(home: Path, *command: object, **variables: str) -> list[str]:
    """Run a command with a home of its own; return the files that it left there."""
    home.mkdir()
    variables |= {"HOME": str(home), "PATH": os.environ["PATH"], "TMPDIR": str(home)}
    subprocess.run([str(part) for part in command], check=True, env=variables, capture_output=True)
    return [path.name for path in home.rglob("*") if path.is_file()]


@pytest.mark.parametrize("before", [{}, {"ORT_DISABLE_TELEMETRY": "0"}], ids=["unset", "0"])
def test_commands_leave_nothing_in_the_home_folder(made, tmp_path, before):
    one = made / "photos" / "a" / "0.png"
    assert left_by(tmp_path / "1", *FEATX, "predict", made / "m.onnx", one, **before) == []
    assert (
        left_by(tmp_path / "2", *FEATX, "check", made / "m.onnx", made / "photos", **before) == []
    )
    extract = (*FEATX, "extract", made / "photos", "-b", "tiny", "-o", tmp_path / "f.h5")
    assert not [name for name in left_by(tmp_path / "3", *extract) if not name.endswith(".onnx")]


@pytest.mark.parametrize(
    "first",
    ["import featx", "import featx.classifier.session"],
)
def test_the_library_leaves_nothing_in_the_home_folder(made, tmp_path, first):
    code = f"{first}; import sys, featx; featx.Predictor(sys.argv[1]).predict(sys.argv[2:])"
    image = made / "photos" / "a" / "0.png"
    assert left_by(tmp_path / "home", sys.executable, "-c", code, made / "m.onnx", image) == []


def test_an_onnxruntime_imported_before_is_told():
    code = (
        "import onnxruntime; calls = []; onnxruntime.disable_telemetry_events = "
        "lambda: calls.append(1); import featx, os; assert calls; "
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    )
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_predicting_opens_no_internet_socket(made, tmp_path):
    if not shutil.which("strace"):
        pytest.skip("strace, which shows the sockets, is not installed")
    trace, image = tmp_path / "trace", made / "photos" / "a" / "0.png"
    strace = ("strace", "-f", "-e", "trace=network", "-o", trace)
    assert left_by(tmp_path / "home", *strace, *FEATX, "predict", made / "m.onnx", image) == []
    assert "AF_INET" not in trace.read_text()
