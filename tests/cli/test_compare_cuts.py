"""``featx compare`` at cuts: moved weights, tags and numbers, class weights, images left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import featx_cli
from PIL import Image
from tuning import patterned, write_activations

from featx.backbones.spec import BUNDLED_WEIGHTS
from featx.heads.head import open_head
from featx.stages.compare import compare_heads

COUNT = 60
SPLITS = np.repeat([0, 1], [42, 18]).astype(np.uint8)
TEXTS = {
    "single-label": ("ant", "bee", "wasp"),
    "multi-label": ("red", "red|big", "big|old"),
    "regression": ("1.5", "2.25", "4"),
}


def write(path: Path, cut: str = "stage3", task: str = "single-label") -> Path:
    kinds = np.arange(COUNT) % 3
    labels = [TEXTS[task][kind] for kind in kinds]
    return write_activations(path, patterned(kinds, noise=120), labels, SPLITS, cut=cut)


def said(*arguments: object) -> str:
    result = featx_cli("compare", *arguments)
    assert result.exit_code != 0
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def test_files_and_heads_at_cuts_take_weights_that_were_moved(tmp_path):
    moved = tmp_path / "moved.safetensors"
    shutil.copy(BUNDLED_WEIGHTS, moved)
    files = [write(tmp_path / f"{cut}.h5", cut) for cut in ("stage2", "stage3")]
    heads = [path.with_suffix(".safetensors") for path in files]
    for path, head in zip(files, heads, strict=True):
        assert featx_cli("train-head", path, "-o", head, "-q").exit_code == 0
    for compared in (files, [*heads, "--no-onnx"]):
        usual, again = (
            featx_cli("compare", *compared, "--json", *more) for more in ((), ("-w", moved))
        )
        assert usual.exit_code == again.exit_code == 0, again.output
        ours, theirs = (json.loads(each.stdout) for each in (usual, again))
        for row in [*ours.get("caches", ()), *theirs.get("caches", ())]:
            row.pop("seconds")
        assert ours == theirs
        assert "have sha256" in said(*compared, "-w", "none")


def test_weights_are_refused_where_they_have_no_effect(tmp_path):
    maps = write(tmp_path / "maps.h5")
    heads = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for head in heads:
        assert featx_cli("finetune", maps, "-o", head, "--lr", 1e-3, "--epochs", 1).exit_code == 0
    assert "--weights has no effect" in said(*heads, "--no-onnx", "-w", BUNDLED_WEIGHTS)


@pytest.mark.parametrize("task", TEXTS)
def test_tuned_heads_are_paired_with_the_probe_where_images_can_be_right(tmp_path, task):
    maps = write(tmp_path / "maps.h5", task=task)
    heads = [tmp_path / "head.safetensors", tmp_path / "tuned.safetensors"]
    assert featx_cli("train-head", maps, "-o", heads[0], "--task", task).exit_code == 0
    quick = ("--lr", 3e-3, "--epochs", 2, "--task", task)
    assert featx_cli("finetune", maps, "-o", heads[1], *quick).exit_code == 0
    first, second = compare_heads(heads).heads
    shown = " ".join(featx_cli("compare", *heads, "--no-onnx").stdout.split())
    if task == "regression":
        assert second.comparison is None
        mae = second.metrics.mae - first.metrics.mae
        assert second.differences["mae"].value == pytest.approx(mae)
        assert "less 1's MAE p" in shown
        return
    score = "top1" if task == "single-label" else "exact"
    shares = [getattr(head.metrics, score) for head in (first, second)]
    assert second.difference == pytest.approx(shares[1] - shares[0])
    assert ("all tags right" in shown) == (task == "multi-label")


def test_class_weights_and_images_left_out_are_those_of_every_row(tmp_path):
    random, photos, out = np.random.default_rng(0), tmp_path / "photos", tmp_path / "out"
    for name, tint in (("leaves", 0), ("petals", 60)):
        for number in range(20):
            image = random.integers(0, 190, (36, 40, 3)) + np.array([tint, 30, 0])
            (photos / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(photos / name / f"{number:02d}.png")
    weights, dropped = tmp_path / "weights.json", tmp_path / "dropped.txt"
    weights.write_text('{"leaves": 3}')
    dropped.write_text("".join(f"leaves/{number:02d}.png\n" for number in range(20)[::2]))
    given = ("--class-weight", weights, "--exclude", dropped)
    cuts = ("--cut", "penultimate", "--cut", "stage3", "--epochs", 1)
    result = featx_cli(
        *("compare", photos, "-b", "tiny", *cuts, *given, "-o", out, "--no-onnx", "--json")
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["heads"]
    assert rows[1]["comparison"]["p_value"] <= 1
    for row in rows:
        details = open_head(row["path"]).header.details
        assert details["class_weight"] == {"leaves": 3}
        assert 5 <= len(details["excluded"]) <= 10  # of those that train
    files = sorted(out.glob("*.h5"))
    assert len(files) == 2
    usual, changed = (
        json.loads(featx_cli("compare", *files, "--json", *more).stdout) for more in ((), given)
    )
    losses = [[row["metrics"]["log_loss"] for row in each["caches"]] for each in (usual, changed)]
    assert losses[0] != losses[1]
    heads = [row["path"] for row in rows]
    assert "no effect" in said(*heads, *given)
