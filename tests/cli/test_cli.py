"""The command line: what it prints, where, and its exit codes."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from click.testing import Result
from commands import featx_cli
from PIL import Image

import featx


def failure(result: Result) -> str:
    """Return the message of a failure, after checking that it is one: the last thing on stderr."""
    assert result.exit_code == 1, result.output
    assert "Error" not in result.stdout
    _, *messages = f"\n{result.stderr}".split("\nError: ")
    assert len(messages) == 1, result.stderr
    assert "Traceback" not in result.output
    return messages[0].rstrip("\n")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty small photos of two classes that differ in colour, in class folders."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    generator = np.random.default_rng(0)
    for name, tint in (("leaves", (0, 90, 0)), ("petals", (90, 0, 60))):
        (root / name).mkdir(parents=True)
        for i in range(30):
            noise = generator.integers(0, 160, (40 + i, 50, 3))
            pixels = np.clip(noise + np.array(tint), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02d}.jpg")
    return root


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with features.h5, head.safetensors and model.onnx of ``photos``."""
    out = tmp_path_factory.mktemp("made")
    stages = (
        ("extract", photos, "-o", out / "features.h5", "--backbone", "tiny"),
        ("train-head", out / "features.h5", "-o", out / "head.safetensors"),
        ("export", out / "head.safetensors", "--onnx", out / "model.onnx"),
    )
    for arguments in stages:
        result = featx_cli(*arguments)
        assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of ``made`` that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_version():
    for flag in ("--version", "-V"):
        assert featx_cli(flag).stdout == f"featx {featx.__version__}\n"


def test_a_name_with_spaces_and_no_quotes_is_told_of_them():
    assert "goes in quotes." in featx_cli("extract", "my", "photos").output


def test_unknown_option_is_a_usage_error():
    result = featx_cli("extract", "photos", "--backbones", "tiny")
    assert result.exit_code == 2
    assert "--backbone" in result.stderr


def test_defaults_chain_the_stages(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ("extract", photos, "-b", "tiny"),
        ("train-head",),
        ("export", "--onnx"),
        ("predict", photos / "petals" / "00.jpg"),
    ):
        result = featx_cli(*arguments)
        assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "artifacts").iterdir()) == [
        "features.h5",
        "head.safetensors",
        "model.onnx",
    ]
    assert "petals" in result.stdout


def test_extract_says_what_it_made(photos, tmp_path):
    result = featx_cli("extract", photos, "-o", tmp_path / "f.h5", "-b", "tiny")
    assert "60 × 192" in result.stdout
    assert "images/s" in result.stdout
    assert str(tmp_path / "f.h5") in result.stdout
    assert result.stderr == ""  # no progress bar where there is no terminal


def test_extract_names_its_engine_and_profiles_it(photos, tmp_path):
    command = ("extract", photos, "-o", tmp_path / "f.h5", "-b", "tiny", "--engine", "torch")
    lines = featx_cli(*command, "--profile").stdout.splitlines()
    assert any(line.endswith("images/s, torch, cpu)") for line in lines)
    assert [line.split()[0] for line in lines[-6:]] == [
        *("read", "decode", "preprocess", "inference", "journal", "idle")
    ]
    assert lines[-8].split()[1:2] == ["workers,"]
    assert all(line.endswith("%") for line in lines[-6:])
    again = featx_cli(*command, "--profile")  # nothing to do, nothing to profile
    assert "up to date" in again.stdout
    assert "decode" not in again.stdout


def test_extract_says_what_it_skipped(photos, tmp_path):
    source = shutil.copytree(photos, tmp_path / "photos")
    for name in ("x.CR2", "y.cr2", "z.txt", ".hidden"):
        (source / name).write_bytes(b"no image")
    result = featx_cli("extract", source, "-o", tmp_path / "f.h5", "-b", "tiny")
    line = next(line for line in result.stdout.splitlines() if line.startswith("skipped"))
    assert line.removeprefix("skipped").strip() == "4 other files: 2 .cr2, 1 .txt, 1 hidden"
    assert result.stderr.startswith("Warning: ")
    assert "skipped 2 other files: 2 .cr2. Formats that featx does not read" in result.stderr


def test_extract_keeps_splits_unless_asked_to_choose_anew(photos, copy):
    command = ("extract", photos, "-o", copy / "features.h5")
    assert "(48 train, 12 val)" in featx_cli(*command, "--restart").output
    message = failure(featx_cli(*command, "--val-fraction", 0.4))
    assert "was made with val fraction 0.2, not 0.4" in message
    assert "--resplit" in message
    anew = featx_cli(*command, "--val-fraction", 0.4, "--resplit").output
    assert "(36 train, 24 val)" in anew
    assert "time" not in anew  # no backbone ran
    again = featx_cli(*command).output
    assert "(36 train, 24 val)" in again
    assert "up to date" in again
    assert "at most 0.5" in failure(featx_cli(*command, "--val-fraction", 0.6, "--resplit"))


def test_train_head_prints_a_table_and_json(made, tmp_path):
    features = made / "features.h5"
    table = featx_cli("train-head", features, "-o", tmp_path / "a", "--verbose").stdout
    assert table.splitlines()[0].split() == [
        *("split", "images", "top-1", "95", "%", "balanced", "macro", "F1"),
        *("log", "loss", "ECE"),
    ]
    assert "3.16e-07 " in table
    assert table.count(" * ") == 1  # the chosen strength
    assert " * " not in featx_cli("train-head", features, "-o", tmp_path / "a").stdout
    assert "temperature" in table
    report = json.loads(
        featx_cli("train-head", features, "-o", tmp_path / "b.safetensors", "--json").stdout
    )
    assert set(report["metrics"]) == {"train", "val"}
    assert report["metrics"]["val"]["top1"] >= 0.9
    assert report["choice"]["head"] == "linear"
    assert len(report["choice"]["path"]) >= 16
    assert report["calibration"]["temperature"] > 0


def test_train_head_per_class(made, tmp_path):
    arguments = ("train-head", made / "features.h5", "-o", tmp_path / "a", "--per-class")
    lines = featx_cli(*arguments).stdout.splitlines()
    header = next(line for line in lines if line.startswith("class (val)"))
    assert header.split()[2:] == [
        "images",
        "predicted",
        "precision",
        "95",
        "%",
        "recall",
        "95",
        "%",
    ]
    assert any(line.startswith("petals ") for line in lines)


def test_no_calibrate_leaves_the_probabilities(made, tmp_path):
    arguments = ("train-head", made / "features.h5", "-o", tmp_path / "a", "--no-calibrate")
    assert "temperature" not in featx_cli(*arguments).stdout
    header = json.loads(featx_cli("info", tmp_path / "a", "--json").stdout)
    assert header["details"]["temperature"] == 1.0


@pytest.mark.parametrize(
    "options",
    [
        ("--head", "mlp", "--hidden", "16,8"),
        ("--solver", "ridge", "--class-weight", "balanced"),
        ("--solver", "sgd", "--lr", "0.01", "--epochs", "3"),
    ],
)
def test_other_heads_export_too(made, tmp_path, options):
    head, model = tmp_path / "head.safetensors", tmp_path / "model.onnx"
    assert featx_cli("train-head", made / "features.h5", "-o", head, *options).exit_code == 0
    result = featx_cli("export", head, "--onnx", model)
    assert result.exit_code == 0, result.output
    assert "same class in 100%" in result.stdout


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--hidden", "8"), "--hidden"),
        (("--head", "mlp", "-C", "1"), "-C"),
        (("--solver", "centroid", "-C", "1"), "-C"),
        (("--momentum", "0.5"), "--momentum"),
        (("--head", "mlp", "--gamma", "0.5"), "--gamma"),
        (("--repeats", "3"), "--repeats"),
    ],
)
def test_an_option_the_head_would_ignore_is_wrong_usage(made, tmp_path, options, named):
    result = featx_cli("train-head", made / "features.h5", "-o", tmp_path / "h", *options)
    assert result.exit_code == 2
    assert f"{named} has no meaning " in result.stderr


def test_the_tutorials_recipe_prints_a_line_per_epoch(made, tmp_path):
    recipe = "--lr 0.001 --momentum 0.9 --step-size 7 --gamma 0.1 --epochs 5 --batch-size 512"
    arguments = ("train-head", made / "features.h5", "-o", tmp_path / "h", "--solver", "sgd")
    lines = featx_cli(*arguments, *recipe.split()).stdout.splitlines()
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 5
    assert epochs[4].split()[::2] == ["epoch", "loss", "accuracy", epochs[4].split()[6]]
    again = ("train-head", made / "features.h5", "-o", tmp_path / "g", "--solver", "sgd", "--json")
    assert json.loads(featx_cli(*again).stdout)["choice"]["solver"] == "sgd"


def test_several_mlps_side_by_side(made, tmp_path):
    arguments = ("train-head", made / "features.h5", "-o", tmp_path / "h", "--head", "mlp")
    options = ("--lr", "0.001", "--lr", "0.01", "--seeds", "2", "--epochs", "3", "--hidden", "8")
    assert "the best of 4: learning rate" in featx_cli(*arguments, *options).stdout
    choice = json.loads(featx_cli("info", tmp_path / "h", "--json").stdout)["details"]["choice"]
    assert [c["learning_rate"] for c in choice["candidates"]] == [0.001, 0.001, 0.01, 0.01]
    sgd = ("train-head", made / "features.h5", "-o", tmp_path / "g", "--solver", "sgd")
    result = featx_cli(*sgd, "--lr", "0.001", "--lr", "0.01")
    assert result.exit_code == 2
    assert "may be repeated for --head mlp only" in result.stderr


def test_few_shot_prints_mean_and_deviation(made, tmp_path):
    arguments = ("train-head", made / "features.h5", "-o", tmp_path / "h", "--shots", "4")
    text = featx_cli(*arguments, "--repeats", "3").stdout
    line = next(line for line in text.splitlines() if line.startswith("over draws"))
    assert "top-1" in line
    assert " ± " in text


def test_class_weights_from_a_file(made, tmp_path):
    weights = tmp_path / "weights.json"
    arguments = ("train-head", made / "features.h5", "-o", tmp_path / "h", "--class-weight")
    weights.write_text('{"petals": 2}')
    assert featx_cli(*arguments, weights).exit_code == 0
    header = json.loads(featx_cli("info", tmp_path / "h", "--json").stdout)
    assert header["details"]["class_weight"] == {"petals": 2}
    for content, said in (("[1]", "must hold an object"), ("{", "is not JSON")):
        weights.write_text(content)
        assert said in failure(featx_cli(*arguments, weights, "--overwrite"))
    assert "cannot be read" in failure(featx_cli(*arguments, tmp_path / "no", "--overwrite"))


def test_evaluate_per_class(made, photos):
    lines = featx_cli("evaluate", made / "model.onnx", photos, "--per-class").stdout.splitlines()
    for split in ("train", "val"):
        start = next(i for i, line in enumerate(lines) if line.startswith(f"class ({split})"))
        assert sum(line.startswith("petals ") for line in lines[start : start + 4]) == 1


@pytest.mark.parametrize("name", ["features.h5", "head.safetensors", "model.onnx"])
def test_info_reads_any_of_the_three(made, name):
    text = featx_cli("info", made / name).stdout
    assert ("2: leaves, petals" if name == "features.h5" else "2: leaves 24, petals 24") in text
    assert "tiny, layer flatten" in text
    header = json.loads(featx_cli("info", made / name, "--json").stdout)
    assert header["classes"] == ["leaves", "petals"]
    assert header["spec"]["backbone"] == "tiny"
    assert len(header["fingerprint"]) == 64


def test_one_fingerprint_travels_through_all_three(made):
    names = ("features.h5", "head.safetensors", "model.onnx")
    found = {
        json.loads(featx_cli("info", made / name, "--json").stdout)["fingerprint"] for name in names
    }
    assert len(found) == 1


def test_predict_formats(made, photos):
    images = (photos / "leaves" / "00.jpg", photos / "petals" / "01.jpg")
    table = featx_cli("predict", made / "model.onnx", *images).stdout
    assert "leaves 0." in table or "leaves 1." in table
    parsed = json.loads(
        featx_cli("predict", made / "model.onnx", *images, "--format", "json").stdout
    )
    assert [entry["top"][0]["label"] for entry in parsed] == ["leaves", "petals"]
    assert sum(item["probability"] for item in parsed[0]["top"]) == pytest.approx(1, abs=1e-5)
    text = featx_cli("predict", made / "model.onnx", *images, "--format", "csv", "-k", "1").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["image"], row["label"]) for row in rows] == [
        (str(images[0]), "leaves"),
        (str(images[1]), "petals"),
    ]


def test_ranks_of_the_csv_start_at_1(made, photos):
    image = photos / "leaves" / "00.jpg"
    text = featx_cli("predict", made / "model.onnx", image, "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert float(rows[0]["probability"]) >= float(rows[1]["probability"])


def test_predict_takes_a_folder(made, photos):
    text = featx_cli("predict", made / "model.onnx", photos, "--format", "csv", "-k", "1").stdout
    assert len(text.splitlines()) == 61


def test_compare_measures_the_models_of_heads(made, copy):
    other = copy / "centroid.safetensors"
    featx_cli("train-head", made / "features.h5", "-o", other, "--solver", "centroid")
    result = featx_cli("compare", made / "head.safetensors", other, "--json")
    assert result.exit_code == 0, result.output
    for head in json.loads(result.stdout)["heads"]:
        assert head["num_bytes"] > 2e6
        assert head["milliseconds"] > 0
    assert not list(copy.glob("*.onnx.*"))


def test_backbones_lists_what_chooses_one():
    lines = featx_cli("backbones").stdout.splitlines()
    assert lines[0].split() == [*("backbone", "features", "input", "params", "GFLOPs", "top-1")]
    assert "resnet18 512 224 11.7 M 1.81 69.8" in [" ".join(line.split()) for line in lines]
    assert any(line.startswith("timm/vit_small_patch14_dinov2  ") for line in lines)
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("timm/vit_small_patch16_dinov3*  ") for line in lines)
    assert lines[-5].startswith("*  under terms that restrict its use")
    assert lines[-3:] == [
        "start with  lite0                          on a laptop's CPU; weights by pip",
        "            timm/vit_small_patch14_dinov2  on a GPU, with --image-size 224",
        "            tiny                           images of about 32 px; no download",
    ]
    first, *_ = json.loads(featx_cli("backbones", "--json").stdout)
    assert (first["name"], first["top1"], first["licence"]) == ("tiny", None, "MIT")


def test_backbones_lists_those_like_a_name_in_an_order():
    command = ("backbones", "Swin", "--max-params", "30m", "--sort", "gflops")
    names = ["swin_t", "timm/swin_tiny_patch4_window7_224", "swin_v2_t"]
    names.append("timm/swinv2_tiny_window8_256")
    table = featx_cli(*command).stdout.splitlines()
    assert [line.split()[0] for line in table[2:]] == names
    rows = json.loads(featx_cli(*command, "--json").stdout)
    assert [row["name"].partition(".")[0] for row in rows] == names
    rows = json.loads(featx_cli("backbones", "--family", "RegNet", "--json").stdout)
    assert {row["family"] for row in rows} == {"regnet"}
    assert {row["name"].partition("/")[0] for row in rows} > {"regnet_y_400mf", "timm"}


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        (("dinno",), 1, "Unknown backbone 'dinno'"),
        (("--family", "regnot"), 2, "No backbone is of a family 'regnot'. Like it are regnet"),
        (("maxvit_t", "--sort", "name"), 2, "maxvit_t is one backbone"),
        (("dino", "--max-params", "3M"), 1, "the smallest, timm/vit_small_patch16_dinov3"),
        (("--max-params", "many"), 2, "'many' is not a number such as 30M"),
        (("vit", "--cuts"), 2, "--cuts needs the whole NAME"),
        (("vit", "--image-size", 64), 2, "--image-size needs the whole NAME"),
        (("ResNet-18", "--sort", "name"), 2, "resnet18 is one backbone"),
    ],
)
def test_backbones_says_what_does_not_fit(command, code, text):
    result = featx_cli("backbones", *command)
    assert (result.exit_code, result.stdout) == (code, "")
    assert text in result.stderr


def test_backbones_of_one_however_it_is_written_has_weights_and_licences():
    text = featx_cli("backbones", "ViT-B/16").stdout
    family, weights = text.splitlines()[:2]
    assert family == "family   vision_transformer"
    assert weights.startswith("weights  IMAGENET1K_V1, IMAGENET1K_SWAG_E2E_V1, IMAGENET1K_SWAG_LIN")
    assert "licence  see torchvision\n" in text
    assert "facebookresearch/SWAG/blob/main/LICENSE\n\nvit_b_16 at 224 px" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_recorded_name_is_the_catalogs(tmp_path):
    command = ("extract", "digits:", "-o", tmp_path / "f.h5", "-q", "-b")
    assert featx_cli(*command, "TINY").exit_code == 0
    assert (
        json.loads(featx_cli("info", tmp_path / "f.h5", "--json").stdout)["spec"]["backbone"]
        == "tiny"
    )
    assert "up to date" in featx_cli(*command, "Tiny").stdout


def test_backbones_lists_layers_with_shapes():
    text = featx_cli("backbones", "tiny").stdout
    assert "flatten *" in text
    assert "128 × 8 × 8" in text
    shapes = json.loads(featx_cli("backbones", "vgg16", "--image-size", "32", "--json").stdout)
    assert shapes["features"] == [512, 1, 1]


def test_backbones_lists_cuts_with_size_parameters_and_work():
    text = featx_cli("backbones", "resnet18").stdout
    assert "layer4    256 × 14 × 14  100.4 kB      8.39 M   22.7%" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "maxpool    " not in text.partition("cuts,")[2]  # layer1 is the same, and smaller
    assert "layer" not in featx_cli("backbones", "tiny", "--cuts").stdout
    first, *others = json.loads(featx_cli("backbones", "tiny", "--cuts", "--json").stdout)
    assert first["name"] == "input"
    assert first["num_bytes"] == 32 * 32 * 3
    every = json.loads(featx_cli("backbones", "tiny", "--cuts", "--json", "--all").stdout)
    assert {cut["name"] for cut in every} > {cut["name"] for cut in others} >= {"stage2", "stage3"}
    assert featx_cli("backbones", "--cuts").exit_code == 2


class TestBadInput:
    """One line on stderr, exit code 1, nothing half-written."""

    def test_unreadable_image_is_named_and_can_be_skipped(self, photos, tmp_path):
        source, output = tmp_path / "photos", tmp_path / "f.h5"
        shutil.copytree(photos, source)
        (source / "petals" / "bad.jpg").write_bytes(b"not an image")
        extract = ("extract", source, "-o", output, "-b", "tiny")
        message = failure(featx_cli(*extract))
        first, second, *_ = message.splitlines()
        assert first == "1 of 61 images cannot be used:"
        assert second.startswith("  petals/bad.jpg: not an image of a known format")
        assert "60 others are kept" in message
        assert sorted(path.name for path in tmp_path.iterdir()) == ["f.h5.partial", "photos"]
        result = featx_cli(*extract, "--on-error", "skip")
        assert result.exit_code == 0
        title, named, following = result.stdout.splitlines()[-3:]  # the list is below its title
        assert title.startswith("bad images  1")
        assert named.startswith("  petals/bad.jpg: not an image")
        assert following.split() == ["next", "featx", "train-head", str(output)]
        header = json.loads(featx_cli("info", output, "--json").stdout)
        assert [entry[0] for entry in header["details"]["skipped"]] == ["petals/bad.jpg"]
        assert header["details"]["num_rows"] == 60

    @pytest.mark.parametrize(
        ("command", "name"), [("train-head", "head.safetensors"), ("export", "features.h5")]
    )
    def test_another_artifact(self, made, tmp_path, command, name):
        option = "-o" if command == "train-head" else "--onnx"
        message = failure(featx_cli(command, made / name, option, tmp_path / "out"))
        assert name in message
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("command", ["train-head", "export", "info", "predict", "evaluate"])
    def test_a_file_that_is_not_ours(self, photos, tmp_path, command):
        foreign = tmp_path / "foreign.onnx"
        foreign.write_text("hello")
        image = [photos / "leaves" / "00.jpg"] if command in ("predict", "evaluate") else []
        assert "foreign.onnx" in failure(featx_cli(command, foreign, *image))

    @pytest.mark.parametrize(
        "arguments",
        [
            ("train-head", "{made}/features.h5", "-o", "{out}"),
            ("export", "{made}/head.safetensors", "--onnx", "{out}"),
            ("report", "{made}/head.safetensors", "-o", "{out}"),
            ("extract", "{photos}", "-b", "tiny", "-o", "{out}"),
        ],
        ids=lambda arguments: arguments[0],
    )
    def test_an_output_that_is_not_featxs(self, made, photos, tmp_path, arguments):
        out = tmp_path / "notes.txt"
        out.write_text("mine")
        command = [text.format(made=made, photos=photos, out=out) for text in arguments]
        for overwrite in ((), ("--overwrite",)):
            assert f"{tmp_path}/notes-2.txt" in failure(featx_cli(*command, *overwrite))
            assert out.read_text() == "mine"
        assert len(list(tmp_path.iterdir())) == 1

    def test_features_of_other_settings(self, made, photos):
        before = {path: path.read_bytes() for path in made.iterdir()}
        arguments = ("extract", photos, "-b", "tiny", "-o", made / "features.h5")
        message = failure(featx_cli(*arguments, "--image-size", "48"))
        assert "preprocess.image_size: expected 48, found 32" in message
        assert "Use --overwrite to replace it, or another output, such as " in message
        assert f" {made / 'features-48px.h5'}." in message
        assert {path: path.read_bytes() for path in made.iterdir()} == before

    @pytest.mark.parametrize(
        ("option", "value", "said"),
        [
            ("--features", "gone.h5", "gone.h5' is not there to compare with"),
            ("--weights", "gone.pth", "gone.pth' does not exist"),
            ("--atol", "1e-12", "1e-12 is allowed"),
        ],
    )
    def test_a_failed_export_publishes_nothing(self, made, tmp_path, option, value, said):
        command = ("export", made / "head.safetensors", "--onnx", tmp_path / "m.onnx")
        assert said in failure(featx_cli(*command, option, value))
        assert list(tmp_path.iterdir()) == []

    def test_missing_gpu_is_an_error(self, photos, tmp_path, monkeypatch):
        monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
        arguments = ("extract", photos, "-b", "tiny", "-o", tmp_path / "f.h5", "--device", "cuda")
        message = failure(featx_cli(*arguments))
        assert "cuda" in message
        assert list(tmp_path.iterdir()) == []

    def test_changed_images_need_no_verify(self, photos, tmp_path):
        source = tmp_path / "photos"
        shutil.copytree(photos, source)
        features, head = tmp_path / "f.h5", tmp_path / "h.safetensors"
        model = tmp_path / "m.onnx"
        assert featx_cli("extract", source, "-o", features, "-b", "tiny").exit_code == 0
        assert featx_cli("train-head", features, "-o", head).exit_code == 0
        shutil.rmtree(source / "petals")
        message = failure(featx_cli("export", head, "--onnx", model))
        assert "--no-verify" in message
        assert not model.exists()
        result = featx_cli("export", head, "--onnx", model, "--no-verify")
        assert result.exit_code == 0
        assert "none: exported with --no-verify" in result.stdout
        assert "none: exported with --no-verify" in featx_cli("info", model).stdout
        moved = featx_cli(*("export", head, "--onnx", model, "--overwrite", "--source", photos))
        assert moved.exit_code == 0, moved.output


@pytest.mark.parametrize(
    ("signal", "said", "code"), [((), "Interrupted.\n", 130), ((15,), "Terminated.\n", 143)]
)
def test_an_interrupted_command_leaves_nothing_and_has_a_shells_exit_code(
    photos, tmp_path, monkeypatch, signal, said, code
):
    monkeypatch.setattr(
        "featx.backbones.engines.OnnxEngine.features", Mock(side_effect=KeyboardInterrupt(*signal))
    )
    result = featx_cli("extract", photos, "-o", tmp_path / "f.h5", "-b", "tiny")
    assert (result.stderr, result.exit_code) == (said, code)
    assert list(tmp_path.iterdir()) == []


def test_quiet_leaves_stderr_empty_in_every_command(made, photos, tmp_path):
    features, head, model = (
        made / name for name in ("features.h5", "head.safetensors", "model.onnx")
    )
    for command in (
        ("extract", photos, "-o", tmp_path / "f.h5", "-b", "tiny", "--seed", 1),
        ("train-head", features, "-o", tmp_path / "h"),  # a note: C is at the end of the range
        ("train-head", features, "-o", tmp_path / "sgd", "--solver", "sgd", "--epochs", 1),
        ("export", head, "--onnx", tmp_path / "m.onnx"),
        ("predict", model, photos / "petals"),
        ("compare", features, tmp_path / "f.h5"),
        ("evaluate", model, photos),
        ("report", head, "-o", tmp_path / "r.html"),
        ("run", photos, "-o", tmp_path / "run", "-b", "tiny"),
        ("status", tmp_path / "run"),
        ("check", features),
        ("info", model),
        ("backbones", "tiny"),
    ):
        result = featx_cli(*command, "--quiet")
        assert (result.stderr, result.exit_code) == ("", 0), command


def test_a_bug_shows_its_traceback(photos, tmp_path, monkeypatch):
    bug = Mock(side_effect=ZeroDivisionError)
    monkeypatch.setattr("featx.stages.extract.open_source", bug)
    result = featx_cli("extract", photos, "-o", tmp_path / "f.h5", "-b", "tiny")
    assert isinstance(result.exception, ZeroDivisionError)


class TestRunningItAgain:
    """``featx extract`` goes on, brings up to date, or says why it does not."""

    @pytest.fixture
    def source(self, photos: Path, tmp_path: Path) -> Path:
        root = tmp_path / "photos"
        for name in ("leaves", "petals"):
            (root / name).mkdir(parents=True)
            for number in range(10):
                shutil.copy(photos / name / f"{number:02d}.jpg", root / name)
        return root

    @pytest.fixture
    def interrupt(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
        """Run a command of one worker that is interrupted at its n-th batch."""
        from featx.backbones.engines import OnnxEngine

        def run(*arguments: object, batch: int) -> Result:
            features, calls = OnnxEngine.features, []

            def at_last(self: OnnxEngine, pixels: np.ndarray) -> np.ndarray:
                calls.append(len(pixels))
                if len(calls) == batch:
                    raise KeyboardInterrupt
                return features(self, pixels)

            with monkeypatch.context() as patch:
                patch.setattr(OnnxEngine, "features", at_last)
                return featx_cli(*arguments, "--workers", 1)

        return run

    def test_an_interrupted_extraction_says_what_it_keeps_and_goes_on(
        self, source, tmp_path, interrupt
    ):
        output = tmp_path / "f.h5"
        command = ("extract", source, "-b", "tiny", "--batch-size", 4)
        assert featx_cli(*command, "-o", tmp_path / "whole.h5").exit_code == 0
        stopped = interrupt(*command, "-o", output, batch=3)
        assert stopped.exit_code == 130
        assert stopped.stdout == ""
        assert stopped.stderr.endswith(
            f"Interrupted. 8 images are kept in '{output}.partial'; run the same command again to "
            "resume.\n"
        )
        for reader in (("info", output), ("train-head", output, "-o", tmp_path / "h")):
            message = failure(featx_cli(*reader))
            assert f"'{output}' is unfinished: 8 of 20 images" in message
        result = featx_cli(*command, "-o", output)
        assert result.exit_code == 0, result.output
        assert "resumed   8 images kept from an unfinished extraction" in result.stdout
        assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["f.h5", "photos", "whole.h5"]

    def test_other_settings_name_both_ways_on(self, source, tmp_path, interrupt):
        output = tmp_path / "f.h5"
        command = ("extract", source, "-b", "tiny", "--batch-size", 4, "-o", output)
        interrupt(*command, batch=2)
        message = failure(featx_cli(*command, "--crop", "none"))
        assert "keeps 4 images" in message
        assert "preprocess.crop: expected 'none', found 'center'" in message
        assert "--restart" in message
        assert "-o" in message
        result = featx_cli(*command, "--crop", "none", "--restart")
        assert result.exit_code == 0, result.output
        assert "resumed" not in result.stdout
        assert sorted(path.name for path in tmp_path.iterdir()) == ["f.h5", "photos"]

    def test_the_daily_loop_needs_no_overwrite_and_says_what_it_replaces(
        self, source, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        chain = (("train-head",), ("export",), ("report",))
        assert featx_cli("extract", source, "-b", "tiny", "--image-size", 40).exit_code == 0
        for command in chain:
            assert "written" in featx_cli(*command).stdout
        artifacts = sorted(Path("artifacts").iterdir())
        before = [path.read_bytes() for path in artifacts]
        for command in (("extract",), *chain):
            assert "up to date" in featx_cli(*command).stdout, command
        assert [path.read_bytes() for path in artifacts] == before
        shutil.copy(source / "leaves" / "00.jpg", source / "leaves" / "new.jpg")
        assert "updated     1 new" in featx_cli("extract").stdout
        trained = featx_cli("train-head", "-C", "0.1").stdout
        assert "replaced     artifacts/head.safetensors  (was linear, C = " in trained
        assert "replaced    artifacts/model.onnx  (was linear, C = " in featx_cli("export").stdout
        replaced = "replaced  artifacts/report.html  (was an earlier report)"
        assert replaced in featx_cli("report").stdout
        assert "preprocess.image_size" not in featx_cli("extract", source).output

    def test_an_update_says_what_changed(self, source, tmp_path):
        command = ("extract", source, "-b", "tiny", "-o", tmp_path / "f.h5")
        assert f"written   {tmp_path / 'f.h5'}" in featx_cli(*command).stdout
        before = (tmp_path / "f.h5").read_bytes()
        again = featx_cli(*command)
        assert again.exit_code == 0
        assert f"up to date  {tmp_path / 'f.h5'}" in again.stdout
        assert "images/s" not in again.stdout
        assert (tmp_path / "f.h5").read_bytes() == before
        shutil.copy(source / "leaves" / "00.jpg", source / "leaves" / "new.jpg")
        shutil.copy(source / "leaves" / "00.jpg", source / "petals" / "00.jpg")
        (source / "leaves" / "01.jpg").unlink()
        updated = featx_cli(*command)
        assert "updated     1 new, 1 changed, 1 removed" in updated.stdout
        assert "duplicates  2 images with the content of another, and its row" in updated.stdout
        assert "20 × 192" in updated.stdout

    def test_bad_images_up_to_a_share(self, source, tmp_path):
        for number in range(3):
            (source / "petals" / f"bad {number}.jpg").write_bytes(b"")
        command = ("extract", source, "-b", "tiny", "-o", tmp_path / "f.h5")
        usage = featx_cli(*command, "--max-bad", "0.5")
        assert "--max-bad needs --on-error skip" in failure(usage)
        skip = (*command, "--on-error", "skip", "--report", tmp_path / "bad.json")
        message = failure(featx_cli(*skip, "--max-bad", "0.1"))
        assert "3 of 23 images cannot be used" in message
        assert "10.00% allowed by --max-bad" in message
        assert len(json.loads((tmp_path / "bad.json").read_text())["bad"]) == 3
        assert featx_cli(*skip, "--max-bad", "0.2").exit_code == 0
