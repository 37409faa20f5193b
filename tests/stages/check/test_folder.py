"""How the three files of a folder stand, and the commands that fix them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from commands import featx_cli
from safetensors.numpy import save_file
from tuned import write_cut, write_tuned

from featx.backbones.spec import BUNDLED_WEIGHTS
from featx.errors import ConfigError
from featx.extraction.options import ExtractOptions
from featx.features.file import open_features
from featx.heads.head import open_head, save_head
from featx.stages.check import StatusReport, status
from featx.stages.check.folder import HEAD, TUNED
from featx.stages.export import ExportOptions, export_onnx
from featx.stages.extract import extract
from featx.stages.finetune import finetune
from featx.stages.train import train_head
from featx.training.finetune.options import FinetuneOptions
from featx.training.finetune.outcome import Events
from featx.training.options import TrainOptions

Photos = Callable[..., Path]


def states(report: StatusReport) -> list[str]:
    return [file.state for file in report.files]


def follow(report: StatusReport) -> None:
    """Run the commands that a report names, in order."""
    for file in report.files:
        if file.command:
            program, *arguments = shlex.split(file.command)
            assert program == "featx"
            result = featx_cli(*arguments)
            assert result.exit_code == 0, (file.command, result.output)


@pytest.fixture
def source(photos: Photos) -> Path:
    return photos({"ants": 9, "bees": 9})


@pytest.fixture
def made(source: Path, tmp_path: Path) -> Path:
    """A folder with the three files, the name of which has a space."""
    folder = tmp_path / "my artifacts"
    result = featx_cli("run", source, "-b", "tiny", "-o", folder)
    assert result.exit_code == 0, result.output
    return folder


def test_a_folder_is_filled_by_following_the_commands(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert source == tmp_path / "photos"
    found = status()
    assert states(found) == ["missing"] * 3
    commands = ["featx extract photos/", "featx train-head", "featx export"]
    assert [file.command for file in found.files] == commands
    assert featx_cli("extract", "photos/", "-b", "tiny").exit_code == 0
    assert states(status()) == ["current", "missing", "missing"]
    follow(status())
    found = status()
    assert found.is_current
    assert [(file.reason, file.command) for file in found.files] == [("", "")] * 3


def test_new_images_spread_from_file_to_file(made, source):
    assert status(made).is_current
    shutil.copy(source / "ants" / "000.jpg", source / "ants" / "new.jpg")
    found = status(made)
    assert states(found) == ["stale", "current", "current"]
    assert found.files[0].reason == "1 new"
    follow(found)
    found = status(made)
    assert states(found)[:2] == ["current", "stale"]
    follow(found)
    follow(status(made))
    assert status(made).is_current


def test_another_head_makes_the_model_stale(made):
    train_head(made / "features.h5", made / "head.safetensors", TrainOptions(strengths=(0.5,)))
    found = status(made)
    assert states(found) == ["current", "current", "stale"]
    assert found.files[2].reason == "it was exported from another head"
    follow(found)
    assert status(made).is_current


def test_a_model_of_a_stale_head_is_stale(made, source):
    image = next(source.glob("*/*.jpg"))
    image.rename(next(folder for folder in source.iterdir() if folder != image.parent) / "new.jpg")
    extract(source, made / "features.h5")
    found = status(made)
    assert states(found) == ["current", "stale", "stale"]
    assert found.files[2].reason == "its head is stale"
    assert [bool(file.command) for file in found.files] == [False, True, False]
    follow(found)
    follow(status(made))
    assert status(made).is_current


def test_a_head_of_other_features_is_stale(made, source):
    options = ExtractOptions(backbone="tiny", image_size=48)
    other = extract(source, made / "other.h5", options).path
    train_head(other, made / "head.safetensors")
    found = status(made)
    assert states(found) == ["current", "stale", "stale"]
    assert "preprocess.image_size" in found.files[1].reason


@pytest.mark.parametrize(
    "options",
    [
        ("--solver", "centroid"),
        ("-C", "0.1", "-C", "1.0", "--no-calibrate"),
        ("--head", "mlp", "--seed", "2", "--hidden", "6,5", "--dropout", "0.1", "--dropout", "0.2"),
        ("--solver", "sgd", "--learning-rate", "0.01", "--epochs", "3"),
        ("--shots", "3", "--repeats", "2"),
    ],
)
def test_a_stale_head_is_trained_as_it_was(made, source, options):
    head = made / "head.safetensors"
    assert featx_cli("train-head", made / "features.h5", "-o", head, *options).exit_code == 0
    next(source.glob("*/*.jpg")).unlink()
    extract(source, made / "features.h5")
    found = status(made).files[1]
    words = shlex.split(found.command)
    assert sorted(words[2 : 2 + len(options)]) == sorted(options)
    before = open_head(head).header.details["made_from"]["options"]
    follow(StatusReport(made, (found,)))
    assert open_head(head).header.details["made_from"]["options"] == before


def test_a_folder_of_numbers_stays_one(source, tmp_path):
    table, folder = tmp_path / "m.csv", tmp_path / "numbers"
    images = enumerate(sorted(source.glob("*/*.jpg")))
    rows = [f"{path},{number / 7},{('train', 'val')[number % 2]}" for number, path in images]
    table.write_text("\n".join(["path,label,split", *rows]))
    run = ("run", table, "-b", "tiny", "-o", folder)
    assert featx_cli(*run, "--task", "regression").exit_code == 0
    assert featx_cli(*run).output.count("up to date") == 3
    table.write_text("\n".join(["path,label,split", *rows[1:]]))
    follow(status(folder))
    assert "--task regression" in status(folder).files[1].command
    result = featx_cli("run", "-o", folder)
    assert "val MAE" in result.output
    assert "val R² " in result.output
    assert status(folder).is_current
    assert "val top-1" in featx_cli(*run, "--task", "auto").output


@pytest.mark.usefixtures("as_is")
def test_weights_that_were_moved(source, tmp_path):
    weights, folder = tmp_path / "own.safetensors", tmp_path / "own"
    shutil.copy(BUNDLED_WEIGHTS, weights)
    assert featx_cli("run", source, "-b", "tiny", "-w", weights, "-o", folder).exit_code == 0
    weights.rename(tmp_path / "moved.safetensors")
    found = status(folder).files[0]
    assert (found.state, found.reason) == ("stale", f"weights: '{weights}' does not exist")
    assert "Say where it is now" in featx_cli("run", "-o", folder).stderr
    command = found.command.replace("WEIGHTS_FILE", str(tmp_path / "moved.safetensors"))
    assert featx_cli(*shlex.split(command)[1:]).exit_code == 0
    assert status(folder).is_current


def test_damaged_features_are_made_again_as_the_head_knows_them(made):
    (made / "features.h5").write_bytes((made / "features.h5").read_bytes()[:-100])
    assert states(status(made))[0] == "damaged"
    follow(status(made))
    assert states(status(made))[0] == "current"


def test_damaged_and_missing_files_are_told_apart(made):
    for name in ("features.h5", "head.safetensors", "model.onnx"):
        path = made / name
        path.write_bytes(path.read_bytes()[:5000])
    found = status(made)
    assert states(found) == ["damaged"] * 3
    assert all(file.reason for file in found.files)
    (made / "model.onnx").write_bytes(b"somebody's")
    stranger = status(made).files[2]
    assert (stranger.state, stranger.command) == ("damaged", "")
    assert stranger.reason.endswith("featx does not replace it.")
    for name in ("features.h5", "head.safetensors"):
        (made / name).unlink()
    assert states(status(made)) == ["missing", "missing", "damaged"]


def test_missing_features_name_the_images_that_the_head_knows(made, source):
    (made / "features.h5").unlink()
    found = status(made)
    assert states(found) == ["missing", "unchecked", "current"]
    assert f"featx extract {source} -b tiny -o " in found.files[0].command


def test_images_that_are_gone(made, source):
    source.rename(source.with_name("moved"))
    found = status(made)
    assert states(found) == ["unchecked", "current", "current"]
    assert "does not exist" in found.files[0].reason
    assert "--verify-content" in found.files[0].command


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "features.h5").touch()
    with pytest.raises(ConfigError, match="give the folder"):
        status(tmp_path / "features.h5")


@pytest.mark.parametrize("update", [False, True])
def test_an_interrupted_extraction_is_unfinished(source, tmp_path, update):
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "a" / "features.h5"
    options = ExtractOptions(backbone="tiny", batch_size=4, workers=1)
    if update:
        extract(source, output, options)
    with pytest.raises(KeyboardInterrupt):
        extract(source, output, ExtractOptions(**vars(options) | {"restart": True}), progress=stop)
    found = status(tmp_path / "a").files[0]
    assert found.state == "unfinished"
    what = "an update" if update else "the extraction"
    assert found.reason == f"{what} was interrupted: 4 of 18 images done"
    follow(status(tmp_path / "a"))
    assert status(tmp_path / "a").files[0].state == "current"


def test_the_command_prints_each_file_and_exits_by_the_state(made):
    result = featx_cli("status", made)
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["current"] * 3
    (made / "model.onnx").unlink()
    result = featx_cli("status", made)
    assert result.exit_code == 1
    assert f"missing     {made}/model.onnx\n            run: featx export" in result.stdout
    result = featx_cli("status", made, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["is_current"] is False
    assert [file["state"] for file in report["files"]] == ["current", "current", "missing"]


def test_running_it_all_again_does_only_what_is_left(made, source):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in made.iterdir()}
    for arguments in (("-o", made), (source, "-b", "tiny", "-o", made)):
        result = featx_cli("run", *arguments)
        assert result.exit_code == 0, result.output
        assert result.stdout.count("up to date") == 3
        now = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in made.iterdir()}
        assert now == before
    features, head, model = (
        made / name for name in ("features.h5", "head.safetensors", "model.onnx")
    )
    for step in (("train-head", features, "-o", head), ("export", head, "--onnx", model)):
        assert "up to date" in featx_cli(*step).stdout  # the defaults of run are theirs
    (source / "ants" / "bad.jpg").write_bytes(b"")
    assert "--on-error skip" in featx_cli("run", "-o", made).stderr
    result = featx_cli("run", "-o", made, "--on-error", "skip")
    assert "left out 1 image that cannot be used:\n  ants/bad.jpg" in result.stdout
    result = featx_cli("run", "-b", "resnet18", "-o", made)
    assert result.exit_code == 1
    assert f"Use --overwrite to replace it, or -o '{made}-resnet18'." in result.stderr


def test_running_it_again_trains_the_head_as_it_was_trained(made, source):
    features, head = made / "features.h5", made / "head.safetensors"
    cache = open_features(features)
    first, second = (cache.sample_ids[row] for row in cache.rows("train")[:2])
    given = ("--head", "mlp", "--hidden", "5", "--dropout", "0.2", "--seed", "3")
    (made / "out.txt").write_text(f"{first}\n{second}\n")
    trained = featx_cli("train-head", features, "-o", head, *given, "--exclude", made / "out.txt")
    assert trained.exit_code == 0, trained.output
    before = head.read_bytes()
    assert featx_cli("run", "-o", made).exit_code == 0
    assert head.read_bytes() == before
    (source / first).unlink()
    assert featx_cli("run", "-o", made).exit_code == 0
    details = open_head(head).header.details
    assert details["choice"]["head"] == "mlp"
    assert details["choice"]["hidden"] == [5]
    assert details["made_from"]["options"]["seed"] == 3
    assert details["excluded"] == [second]
    assert featx_cli("run", "-o", made, "--task", "multi-label").exit_code == 0
    assert open_head(head).header.details["choice"]["head"] == "linear"


@pytest.fixture
def tuned_made(made: Path, source: Path) -> Path:
    """The folder of ``made`` with activations at a cut and a tuned head besides."""
    features = made / "features-stage3.h5"
    write_cut(features, made / "features.h5", source, "stage3")
    write_tuned(made / "tuned.safetensors", features)
    return made


def names(report: StatusReport) -> list[str]:
    return [file.path.name for file in report.files]


BOTH = ["features.h5", "head.safetensors", "features-stage3.h5", "tuned.safetensors", "model.onnx"]


def test_both_chains_of_a_folder_are_told_and_a_model_of_either_is_current(tuned_made):
    found = status(tuned_made)
    assert names(found) == BOTH
    assert found.is_current
    options = ExportOptions(verify=False)
    export_onnx(tuned_made / "tuned.safetensors", tuned_made / "model.onnx", options)
    assert status(tuned_made).is_current
    write_tuned(tuned_made / "tuned.safetensors", tuned_made / "features-stage3.h5", strength=0.1)
    found = status(tuned_made)
    assert states(found) == [*["current"] * 4, "stale"]
    assert found.files[4].reason.startswith("it was exported from another head; ")


@pytest.mark.parametrize(
    ("plain", "tuned", "newer", "offered", "why"),
    [
        (0.9, 0.5, TUNED, HEAD, "top-1 0.9000 against 0.5000 on the same"),
        (0.5, 0.9, HEAD, TUNED, "top-1 0.9000 against 0.5000 on the same"),
        (0.9, 0.9, HEAD, HEAD, "newer"),
        (0.9, None, TUNED, TUNED, "newer"),
    ],
)
def test_of_two_heads_a_model_is_offered_of_the_better_else_of_the_newer(
    tuned_made, plain, tuned, newer, offered, why
):
    for name, top1 in ((HEAD, plain), (TUNED, tuned)):
        head = open_head(tuned_made / name)
        metrics = dict(head.header.details["metrics"])
        own = metrics.pop("val")
        if top1 is not None:
            metrics["val"] = own | {"top1": top1}
        header = replace(head.header, details=head.header.details | {"metrics": metrics})
        save_head(tuned_made / name, replace(head, header=header), overwrite=True)
        os.utime(tuned_made / name, (1e9 + (name == newer),) * 2)
    for state in ("stale", "missing"):
        model = status(tuned_made).files[-1]
        assert model.state == state
        assert shlex.split(model.command)[:3] == ["featx", "export", str(tuned_made / offered)]
        assert offered in model.reason
        assert why in model.reason
        (tuned_made / "model.onnx").unlink(missing_ok=True)


def test_of_two_heads_a_model_is_offered_of_the_one_that_is_current(tuned_made):
    (tuned_made / "features-stage3.h5").unlink()
    (tuned_made / "model.onnx").unlink()
    model = status(tuned_made).files[-1]
    assert model.reason == "only head.safetensors is current"
    assert shlex.split(model.command)[2] == str(tuned_made / HEAD)


def test_a_folder_with_activations_alone_needs_no_plain_features(tuned_made):
    options = ExportOptions(verify=False)
    export_onnx(tuned_made / "tuned.safetensors", tuned_made / "model.onnx", options)
    for name in BOTH[:2]:
        (tuned_made / name).unlink()
    found = status(tuned_made)
    assert names(found) == BOTH[2:]
    assert found.is_current
    (tuned_made / "tuned.safetensors").unlink()
    found = status(tuned_made)
    assert names(found) == BOTH[2:]
    assert states(found) == ["current", "missing", "unchecked"]
    assert found.files[1].command.startswith("featx finetune ")
    assert "features-stage3.h5" in found.files[1].command


def test_activations_that_are_gone_name_the_cut(tuned_made):
    (tuned_made / "features-stage3.h5").unlink()
    found = status(tuned_made)
    assert names(found) == BOTH
    assert states(found) == ["current", "current", "missing", "unchecked", "current"]
    assert " -b tiny --cut stage3 -o " in found.files[2].command


def test_an_unfinished_training_names_the_command_that_it_was_started_with(tuned_made):
    partial = tuned_made / "tuned.safetensors.partial"
    options = {"lr": 0.001, "max_epochs": 5, "scratch": True, "calibrate": False, "patience": 4}
    state = {"settings": {"options": options}, "state": {"epochs": [{}, {}]}}
    save_file({}, partial, {"featx-training": json.dumps(state)})
    (found,) = [file for file in status(tuned_made).files if file.path.name.startswith("tuned")]
    assert (found.state, found.reason) == (
        "unfinished",
        "a training was interrupted after 2 epochs",
    )
    for flags in ("--lr 0.001", "--epochs 5", "--scratch", "--no-calibrate"):
        assert flags in found.command
    assert "--patience" not in found.command


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_options_given_as_files_are_in_the_advice(tuned_made):
    features, tuned = tuned_made / "features-stage3.h5", tuned_made / "tuned.safetensors"
    start = tuned_made / "start.safetensors"
    train_head(features, start)
    options = FinetuneOptions(
        lr=1e-3,
        max_epochs=1,
        exclude=(open_features(features).sample_ids[0],),
        class_weight={"ants": 2.0},
    )
    finetune(features, tuned, options, start=start)
    (found,) = [file for file in status(tuned_made).files if file.path == tuned]
    assert found.state == "current"
    with pytest.raises(KeyboardInterrupt):
        finetune(
            *(features, tuned, replace(options, max_epochs=2)),
            start=start,
            events=Events(on_epoch=interrupt),
        )
    (found,) = [file for file in status(tuned_made).files if file.path == tuned]
    assert found.state == "unfinished"
    assert shlex.split(found.command)[2:8] == [
        *("--start", str(start), "--exclude", "EXCLUDED_FILE", "--class-weight", "WEIGHTS_FILE")
    ]


def test_a_tuned_head_of_other_rows_is_stale(tuned_made, source):
    next(source.glob("*/*.jpg")).unlink()
    extract(source, tuned_made / "features.h5")
    features = tuned_made / "features-stage3.h5"
    assert states(status(tuned_made))[2:4] == ["stale", "current"]
    write_cut(features, tuned_made / "features.h5", source, "stage3")
    found = status(tuned_made)
    assert states(found)[2:4] == ["current", "stale"]
    assert found.files[3].command.startswith("featx finetune ")
