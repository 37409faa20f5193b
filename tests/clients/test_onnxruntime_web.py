"""onnxruntime-web under Node: the whole graph, in WebAssembly, against ONNX Runtime itself."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from featx.classifier.session import open_classifier

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    not shutil.which("node") or not (HERE / "node_modules" / "onnxruntime-web").is_dir(),
    reason="needs Node and onnxruntime-web: make tests/clients/node_modules/.ready",
)


def run_in_node(
    model: Path, inputs: Sequence[np.ndarray], name: str, folder: Path
) -> list[dict[str, np.ndarray]]:
    """Return the outputs of each input, as flat arrays."""
    files = [folder / f"{number}.bin" for number in range(len(inputs))]
    job = {
        "model": str(model),
        "inputs": [
            {"name": name, "type": str(v.dtype), "dims": v.shape, "file": str(file)}
            for v, file in zip(inputs, files, strict=True)
        ],
    }
    for values, file in zip(inputs, files, strict=True):
        file.write_bytes(np.ascontiguousarray(values).tobytes())
    (folder / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        ["node", str(HERE / "run.mjs"), str(folder / "job.json")],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return [{key: np.array(values) for key, values in line.items()} for line in lines]


@pytest.mark.parametrize(
    "contract",
    [
        ("image", "logits", "probabilities"),
        ("image", "features", "top-2"),
        ("crop", "logits"),
        ("tensor", "logits"),
    ],
    ids="-".join,
)
def test_it_answers_as_native_within_a_millionth(export, images, contract, tmp_path):
    model = export(*contract)
    classifier = open_classifier(model, threads=1)
    inputs = [classifier.prepare(image)[None] for image in images]
    inputs.append(np.concatenate([inputs[2], inputs[2]]))  # a batch
    answers = run_in_node(model, inputs, classifier.contract.input_name, tmp_path)
    expected = [classifier.run(given) for given in inputs]
    for name in expected[0]:
        ours = [values[name].ravel() for values in expected]
        theirs = [answer[name] for answer in answers]
        largest = max(np.abs(values).max() for values in ours)
        differences = [np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)]
        assert max(differences) <= 1e-6 * largest, name
    assert all(list(answer) == list(expected[0]) for answer in answers)


def test_images_of_one_shape_agree(export, photos_of_one_shape, tmp_path):
    model = export("image", "logits", image_shape=(48, 64), batch=1)
    inputs = [image[None] for image in photos_of_one_shape]
    answers = run_in_node(model, inputs, "image", tmp_path)
    expected = [open_classifier(model, threads=1).run(given)["logits"] for given in inputs]
    for answer, values in zip(answers, expected, strict=True):
        assert np.abs(answer["logits"] - values).max() <= 1e-5 * np.abs(values).max()
