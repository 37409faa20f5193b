"""Several backbones, layers and sizes of one source: which one suits these images?"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import featx_cli
from PIL import Image
from scipy.stats import binomtest

from featx.features.file import open_features
from featx.heads.head import open_head
from featx.images.sources import open_source

pytest.importorskip("timm")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a third of scikit-learn's digits."""
    folder, source = tmp_path_factory.mktemp("digits"), open_source("digits:")
    for index, sample in list(enumerate(source.samples))[::3]:
        path = folder / source.classes[sample.label] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(source.read(index)).save(path)
    return folder


@pytest.fixture(scope="module")
def two(digits: Path) -> tuple[object, ...]:
    """The arguments that compare two networks with random weights."""
    return (digits, "-w", "none", "--image-size", 32, "-b", "tiny", "-b", "timm/test_resnet")


@pytest.fixture(scope="module")
def out(two: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a comparison."""
    folder = tmp_path_factory.mktemp("compare")
    done(*two, "-o", folder, "--no-onnx")
    return folder


def done(*command: object) -> Any:
    result = featx_cli("compare", *command)
    assert result.exit_code == 0, result.output
    return result


def right(out: Path, name: str) -> np.ndarray:
    """Return which validation images a head has right, from its own outputs."""
    cache = open_features(out / f"features-{name}.h5")
    rows = cache.splits == list(cache.split_names).index("val")
    logits = open_head(out / f"head-{name}.safetensors").logits(cache.features[rows])
    return logits.argmax(axis=1) == cache.labels[rows]


def test_the_best_backbone_comes_first_and_the_others_are_paired_with_it(two, out):
    result = done(*two, "-o", out, "--no-onnx", "--json")
    first, second = json.loads(result.stdout)["heads"]
    names = [Path(head["path"]).stem.removeprefix("head-") for head in (first, second)]
    assert set(names) == {"tiny-32px", "timm_test_resnet.r160_in1k-32px"}
    best, other = (right(out, name) for name in names)
    assert first["metrics"]["top1"] == pytest.approx(best.mean())
    assert best.mean() >= other.mean()
    assert first["comparison"] is None
    paired = second["comparison"]
    counts = int((best & ~other).sum()), int((other & ~best).sum())
    assert (paired["num_only_first"], paired["num_only_this"]) == counts
    assert paired["p_value"] == pytest.approx(binomtest(counts[0], sum(counts)).pvalue)
    assert paired["difference"] == pytest.approx(other.mean() - best.mean())


def test_the_table_names_what_differs_the_test_and_the_next_command(two, out):
    text = done(*two, "-o", out, "--no-onnx").stdout
    first, second = json.loads(done(*two, "-o", out, "--no-onnx", "--json").stdout)["heads"]
    titles = next(line.split() for line in text.splitlines() if line.startswith("   head"))
    assert titles == ["head", "backbone", "trained"]  # and not pixels, cut, or the layer of each
    is_alike = second["comparison"]["p_value"] >= 0.05
    _, scores, *_ = (line.split() for line in text.splitlines() if line.startswith("2 "))
    assert scores[-1] == ("alike" if is_alike else "worse")
    *_, last = text.splitlines()
    assert last.split()[:3] == ["next", "featx", "export"]
    assert Path(shlex.split(last)[3]).resolve() == Path(first["path"]).resolve()


def test_sizes_and_layers_are_named_where_they_differ(digits, tmp_path):
    source = (digits, "-b", "tiny", "-o", tmp_path, "--no-onnx")
    text = done(*source, "--image-size", 8, "--image-size", 32).stdout
    titles, _, first, second = (line.split() for line in text.splitlines()[:4])
    assert titles == ["head", "pixels", "trained"]
    assert [first[2], second[2]] == ["32", "8"]
    assert sum(line.endswith("worse") for line in text.splitlines()) == 1
    text = done(*source, "--layer", "stage1", "--layer", "penultimate").stdout
    assert text.splitlines()[0].split() == ["head", "layer", "trained"]
    assert len(list(tmp_path.glob("features-tiny*.h5"))) == 4


def test_a_folder_that_was_copied_makes_nothing_again(two, out, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    text = done(*two, "-o", copy, "--no-onnx").stdout
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert text
