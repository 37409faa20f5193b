"""From images to a tuned model by one command, and again with nothing changed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from commands import draw_tinted, featx_cli

from featx.cli.compare_source import rows_of
from featx.features.file import open_features
from featx.heads.head import open_head

SOURCE = ("-b", "tiny", "--cut", "stage3")
QUICK = ("--lr", "0.001", "--epochs", "1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_tinted(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a source that was extracted with views, tuned, and exported."""
    out = tmp_path_factory.mktemp("made")
    for command in (
        ("finetune", photos, *SOURCE, "--views", 2, "-o", out / "tuned.safetensors", *QUICK),
        (
            *("export", out / "tuned.safetensors", "--onnx", out / "model.onnx"),
            *("--card", out / "model.md"),
        ),
    ):
        result = featx_cli(*command)
        assert result.exit_code == 0, result.output
    return out


def test_images_become_a_tuned_model_that_predicts(made, photos):
    cache = open_features(made / "features-stage3.h5")
    assert (cache.row_shape, cache.num_views) == ((128, 8, 8), 2)
    assert open_head(made / "tuned.safetensors").tail
    result = featx_cli(
        "predict", made / "model.onnx", photos / "petals", "--format", "csv", "-k", 1
    )
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == 20
    assert {row["label"] for row in rows} <= {"leaves", "petals"}
    assert "intact" in featx_cli("check", made / "model.onnx").stdout


def test_head_model_and_card_name_the_views_that_trained_them(made):
    views = "2 views of each training image (random crop, flip; generator 1)"
    for name in ("features-stage3.h5", "tuned.safetensors", "model.onnx"):
        assert views in " ".join(featx_cli("info", made / name).stdout.split())
    assert f"trained on {views}" in (made / "model.md").read_text().replace("\\", "")


def test_without_a_source_the_same_images_are_taken_and_nothing_is_left_to_do(made):
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    tuned = ("-o", made / "tuned.safetensors", *QUICK)
    result = featx_cli("finetune", "--cut", "stage3", *tuned)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("up to date") == 2
    assert featx_cli("finetune", *tuned).stdout.count("up to date") == 1  # no image is looked at
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


def test_other_settings_need_a_word(made, photos):
    tuned = ("-o", made / "tuned.safetensors", *QUICK)
    result = featx_cli("finetune", photos, "-b", "tiny", "--cut", "stage3", "--seed", 1, *tuned)
    assert result.exit_code == 0  # of the training
    result = featx_cli("finetune", photos, *SOURCE, "--image-size", 48, *tuned)
    assert result.exit_code == 1
    assert "made with other settings" in result.stderr
    assert "--overwrite" in result.stderr


def test_from_scratch_no_weights_are_read(photos, tmp_path):
    tuned = ("-o", tmp_path / "scratch.safetensors", *QUICK)
    result = featx_cli("finetune", photos, "-b", "tiny", "--cut", "input", "--scratch", *tuned)
    assert result.exit_code == 0, result.output
    assert open_features(tmp_path / "features-input.h5").header.details["weights"] == "random:0"


def test_a_tuned_network_is_loaded_strictly_by_torchvision(photos, tmp_path):
    tuned, weights = tmp_path / "tuned.safetensors", tmp_path / "tuned.pth"
    network = ("-b", "mobilenet_v3_small", "-w", "none", "--image-size", 64, "--dtype", "float32")
    for command in (
        ("finetune", photos, *network, "--cut", "features.12", "-o", tuned, *QUICK),
        ("export", tuned, "--state-dict", weights),
    ):
        result = featx_cli(*command)
        assert result.exit_code == 0, result.output
    model = torchvision.models.mobilenet_v3_small(num_classes=2)
    model.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    head = open_head(tuned)
    assert torch.equal(
        model.classifier[0].weight, torch.from_numpy(head.tail["classifier.0.weight"])
    )
    assert torch.equal(model.classifier[3].weight, torch.from_numpy(head.layers[-1][0]))


def test_run_chains_extraction_tuning_and_export(photos, tmp_path):
    first, again = (featx_cli("run", photos, *SOURCE, "-o", tmp_path) for _ in range(2))
    assert first.exit_code == 0, first.output
    assert first.stdout.count("written") == 3
    assert again.stdout.count("up to date") == 3
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"features-stage3.h5", "tuned.safetensors", "model.onnx"}


def test_compare_makes_what_it_compares_and_keeps_the_seconds(photos, tmp_path):
    cuts = ("--cut", "penultimate", "--cut", "stage3", "--scratch", "--epochs", 1)
    asked = ("compare", photos, "-b", "tiny", *cuts, "-o", tmp_path, "--no-onnx")
    result = featx_cli(*asked)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *("features.h5", "features-stage3.h5", "features-input.h5"),
        *("head.safetensors", "tuned-stage3.safetensors", "scratch.safetensors", "seconds.json"),
    }
    again = json.loads(featx_cli(*asked, "--json").stdout)
    found = [(head["cut"], head["start"], head["timing"]["total"] > 0) for head in again["heads"]]
    assert found == [
        ("penultimate", "pretrained", True),
        ("stage3", "pretrained", True),
        ("input", "scratch", True),
    ]
    epochs = [head["timing"]["epoch"] for head in again["heads"]]
    assert [seconds is not None and seconds > 0 for seconds in epochs] == [False, True, True]
    assert "an epoch" in result.stdout
    assert [head["num_trained"] for head in again["heads"]] == [386, 221_954, 684_834]


def test_compare_needs_two_rows_of_one_source(photos):
    for arguments in ((photos, "--cut", "stage3"), (photos, photos, "--cut", "a", "--cut", "b")):
        assert featx_cli("compare", *arguments).exit_code == 2


def layers_compared(photos: Path, folder: Path, *more: str) -> Any:
    """Compare two layers at two image sizes: a head each."""
    layers = ("--layer", "stage1", "--layer", "penultimate")
    sizes = ("--image-size", 16, "--image-size", 32)
    result = featx_cli(
        *("compare", photos, "-b", "Tiny", *layers, *sizes, "-o", folder, "--no-onnx", *more)
    )
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def compared(photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compared") / "compare"
    layers_compared(photos, folder)
    return folder


def test_compare_ranks_layers_and_sizes_and_names_the_settings_that_differ(
    compared, photos, monkeypatch
):
    monkeypatch.chdir(compared)
    before = {path: path.stat().st_mtime_ns for path in compared.iterdir()}
    text = layers_compared(photos, compared).stdout
    assert {path: path.stat().st_mtime_ns for path in compared.iterdir()} == before
    assert all(len(line) <= 80 for line in text.splitlines())
    names = {f"tiny-{size}px-{layer}" for size in (16, 32) for layer in ("stage1", "penultimate")}
    assert {path.name for path in compared.iterdir()} == {
        *(f"features-{name}.h5" for name in names),
        *(f"head-{name}.safetensors" for name in names),
        "seconds.json",
    }
    first, *_ = text.splitlines()
    assert first.split() == ["head", "pixels", "layer", "trained"]  # and no backbone, no cut
    assert "alike" in text
    rows = json.loads(layers_compared(photos, compared, "--json").stdout)["heads"]
    assert {(row["image_size"], row["layer"]) for row in rows} == {
        *((size, layer) for size in (16, 32) for layer in ("stage1", "flatten")),
    }
    scores = [row["metrics"]["top1"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert f"next        featx export {Path(rows[0]['path']).name}" in text


def test_compare_again_makes_only_what_is_missing(compared, photos):
    folder = compared
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    gone = {folder / "features-tiny-16px-stage1.h5", folder / "head-tiny-32px-stage1.safetensors"}
    gone.add(folder / "seconds.json")
    for path in gone:
        path.unlink()
    text = layers_compared(photos, folder).stdout
    after = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {path for path in before if before[path] != after[path]} == gone
    assert "made before" in text


def test_backbones_are_compared_with_a_file_each():
    given = {"backbone": ("tiny", "ResNet-18", "resnet18"), "cuts": ("penultimate", "input")}
    rows = rows_of(["photos"], given | {"image_size": (64,)})
    assert [row.features(Path()).name for row in rows] == [
        *("features-tiny-64px.h5", "features-tiny-64px-input.h5"),
        *("features-resnet18-64px.h5", "features-resnet18-64px-input.h5"),
    ]
    assert rows[3].head(Path()).name == "tuned-resnet18-64px-input.safetensors"
    assert rows[3].settings == {"cut": "input", "backbone": "resnet18", "image_size": 64}


def test_what_is_compared_is_told_by_content(photos, made, tmp_path):
    odd = tmp_path / "features.jpg"
    odd.write_bytes((made / "features-stage3.h5").read_bytes())
    result = featx_cli("compare", odd, "-b", "tiny", "-b", "resnet18")
    assert result.exit_code == 2
    assert "is a features file" in result.stderr
    result = featx_cli("compare", photos, photos)
    assert result.exit_code == 2
    assert "neither a feature file nor a head" in result.stderr
    for wrong in (("-b", "tiny", "-b", "tiny"), ("--layer", "stage2", "--cut", "stage3")):
        assert featx_cli("compare", photos, *wrong, "-o", tmp_path).exit_code == 2
