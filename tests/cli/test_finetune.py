"""``featx finetune``: what it prints, what it refuses, and that it is run again as it should."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from caches import separable, write_cache
from commands import featx_cli
from PIL import Image
from tuning import patterned, write_activations

from featx.backbones.spec import BUNDLED_WEIGHTS
from featx.classifier.staleness import staleness_of
from featx.errors import ArtifactMismatch, ConfigError
from featx.features.file import open_features
from featx.heads.head import open_head
from featx.stages.finetune import finetune
from featx.training.finetune.options import FinetuneOptions
from featx.training.finetune.outcome import Epoch, Events

QUICK = ("--lr", "0.001", "--epochs", "2")
OPTIONS = FinetuneOptions(lr=0.001, max_epochs=2)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Activations entering the last stage of tiny, of three classes of images."""
    random = np.random.default_rng(0)
    labels = np.arange(90) % 3
    splits = random.choice(3, 90, p=[0.7, 0.2, 0.1]).astype(np.uint8)
    names = [("ant", "bee", "wasp")[label] for label in labels]
    path = tmp_path_factory.mktemp("maps") / "maps.h5"
    return write_activations(path, patterned(labels), names, splits)


@pytest.fixture(scope="module")
def tuned(maps: Path) -> Path:
    result = featx_cli("finetune", maps, "-o", maps.with_name("tuned.safetensors"), *QUICK, "-q")
    assert result.exit_code == 0, result.output
    return maps.with_name("tuned.safetensors")


def usage_error(*arguments: object) -> str:
    result = featx_cli("finetune", *arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


# --- what is printed ------------------------------------------------------------------------------


def test_parameters_epochs_and_both_heads_are_printed_in_eighty_columns(maps, tmp_path):
    result = featx_cli("finetune", maps, "-o", tmp_path / "t", *QUICK)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    own = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert own["stage3.0"] == ["221,184", "32.3%"]
    assert own["head"] == ["579", "0.1%"]
    assert own["all"][0] == "222,147"
    assert [line.split()[0] for line in lines if line.strip()[:2] in ("1 ", "2 ")] == ["1", "2"]
    heads = [tuple(line.split()[:2]) for line in lines if line.split()[:1] == ["val"]]
    assert heads == [("val", "probe"), ("val", "tuned")]
    assert "(McNemar, p = " in " ".join(lines)
    assert own["written"] == [str(tmp_path / "t")]
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line)


def test_parameters_can_be_listed_one_a_line_and_add_up(maps, tmp_path):
    lines = featx_cli("finetune", maps, "-o", tmp_path / "t", *QUICK, "--list").stdout.splitlines()
    listed = lines[2 : lines.index("")]
    counts = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in listed}
    assert "stage3.0.weight" in counts
    assert counts.pop("all") == sum(counts.values())


def test_json_and_quiet_print_nothing_on_the_way(maps, tuned):
    values = json.loads(featx_cli("finetune", maps, "-o", tuned, *QUICK, "--json").stdout)
    assert values["is_unchanged"]
    assert values["cut"] == "stage3"
    assert len(values["choice"]["epochs"]) == 2
    assert values["probe"]["val"]["num_samples"] == values["metrics"]["val"]["num_samples"]
    text = featx_cli("finetune", maps, "-o", tuned, *QUICK, "--restart", "-q").stdout
    assert "parameters to learn" not in text
    assert "tuned" in text


@pytest.mark.parametrize(
    ("task", "labels", "column"),
    [
        ("multi-label", ("red", "red|big", "big|old"), "mAP"),
        ("regression", ("1.5", "2.25", "4"), "MAE"),
    ],
)
def test_tags_and_numbers_are_tuned_and_compared(tmp_path, task, labels, column):
    classes = np.arange(60) % 3
    splits = np.repeat([0, 1], [42, 18]).astype(np.uint8)
    path = tmp_path / "maps.h5"
    write_activations(path, patterned(classes), [labels[each] for each in classes], splits)
    heads = tmp_path / "tuned.safetensors", tmp_path / "head.safetensors"
    tuned = featx_cli("finetune", path, "-o", heads[0], "--task", task, *QUICK, "-q")
    assert tuned.exit_code == 0, tuned.output
    assert tuned.stdout.startswith("split  head ")
    assert "McNemar" not in tuned.stdout
    assert featx_cli("train-head", path, "-o", heads[1], "--task", task, "-q").exit_code == 0
    compared = featx_cli("compare", *heads, "--no-onnx")
    assert column in compared.stdout
    for text in (tuned.stdout, compared.stdout):
        assert all(len(line) <= 80 for line in text.splitlines() if str(tmp_path) not in line)


@pytest.mark.parametrize(("task", "score"), [("regression", "R²"), ("single-label", "accuracy")])
def test_the_score_of_an_epoch_is_that_of_the_task(tmp_path, task, score):
    classes = np.arange(60) % 3
    splits = np.repeat([0, 1], [42, 18]).astype(np.uint8)
    names = [str(each) for each in classes]
    path = write_activations(tmp_path / "maps.h5", patterned(classes), names, splits)
    tuned = featx_cli("finetune", path, "-o", tmp_path / "t", "--task", task, *QUICK)
    (titles,) = (line for line in tuned.stdout.splitlines() if line.startswith("epoch"))
    assert titles.split()[:5] == ["epoch", "loss", "held-out", "loss", score]


# --- the file, and another run --------------------------------------------------------------------


def test_another_run_leaves_the_file_and_another_recipe_replaces_it(maps, tuned, tmp_path):
    content = tuned.read_bytes()
    assert "up to date" in featx_cli("finetune", maps, "-o", tuned, *QUICK).stdout
    assert tuned.read_bytes() == content
    copy = tmp_path / "tuned.safetensors"
    copy.write_bytes(content)
    result = featx_cli("finetune", maps, "-o", copy, "--lr", "0.001", "--epochs", "1")
    assert "replaced" in result.stdout
    assert copy.read_bytes() != content
    assert not list(tmp_path.glob("*.partial"))


def test_the_head_holds_the_tail_and_is_of_its_features(maps, tuned):
    head = open_head(tuned)
    assert head.tail["stage3.0.weight"].shape == (192, 128, 3, 3)
    assert head.header.details["probe"]["metrics"]["val"]
    assert not staleness_of(head, open_features(maps)).is_stale


@pytest.mark.parametrize("events_after_epoch_1", [0, 1, 2])
def test_a_run_interrupted_anywhere_is_resumed_to_the_same_bits(
    maps, tuned, tmp_path, events_after_epoch_1
):
    seen: list[object] = []

    def stop(at: object, *_: object) -> None:  # in epoch 1, in epoch 2, and when all are done
        if seen or isinstance(at, Epoch):
            seen.append(at)
        if len(seen) == 1 + events_after_epoch_1:
            raise KeyboardInterrupt

    output = tmp_path / "tuned.safetensors"
    with pytest.raises(KeyboardInterrupt) as stopped:
        finetune(maps, output, OPTIONS, events=Events(on_epoch=stop, on_step=stop))
    (note,) = stopped.value.__notes__
    assert note.startswith(f"The progress is kept in '{tmp_path}")
    assert "run the same command again to resume, or finetune with finish=True" in note
    assert not output.exists()
    assert finetune(maps, output, OPTIONS).is_resumed
    assert output.read_bytes() == tuned.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.safetensors"]


def test_the_best_epoch_of_an_interrupted_run_can_be_written(maps, tmp_path):
    def stop_at_2(epoch, *_: object) -> None:
        if epoch.number == 2:
            raise KeyboardInterrupt

    output, options = tmp_path / "tuned.safetensors", FinetuneOptions(lr=0.001, max_epochs=4)
    given = ("finetune", maps, "-o", output, "--lr", "0.001", "--epochs", "4", "--finish")
    result = featx_cli(*given)
    assert result.exit_code == 1
    assert "There is nothing to finish" in result.stderr
    assert "Train without --finish" in " ".join(result.stderr.split())
    with pytest.raises(KeyboardInterrupt):
        finetune(maps, output, options, events=Events(on_epoch=stop_at_2))
    with pytest.raises(ArtifactMismatch, match="other settings"):  # it is of four epochs
        finetune(maps, output, OPTIONS, finish=True)
    with pytest.raises(ConfigError, match="restart=True forgets the run"):
        finetune(maps, output, options, finish=True, restart=True)
    result = featx_cli(*given)
    assert result.exit_code == 0, result.output
    head = open_head(output)
    epochs = head.header.details["choice"]["epochs"]
    assert len(epochs) == 2
    assert (
        head.header.details["choice"]["best_epoch"]
        == min(epochs, key=lambda epoch: epoch["held_out"])["number"]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.safetensors"]
    assert "up to date" in featx_cli(*given[:-1]).stdout


def test_another_start_trains_again(maps, tuned, tmp_path):
    start, output = tmp_path / "start.safetensors", tmp_path / "again.safetensors"
    start.write_bytes(tuned.read_bytes())
    finetune(maps, output, OPTIONS, start=start)
    assert finetune(maps, output, OPTIONS, start=start).is_unchanged
    assert not finetune(maps, output, OPTIONS).is_unchanged
    with pytest.raises(ConfigError, match="would replace the head to start from"):
        finetune(maps, start, OPTIONS, start=start)


def test_a_head_on_the_same_file_is_the_probe(maps, tuned, tmp_path):
    head = tmp_path / "head.safetensors"
    assert featx_cli("train-head", maps, "-o", head).exit_code == 0
    assert "up to date" in featx_cli("train-head", maps, "-o", head).stdout
    report = finetune(maps, tuned, OPTIONS)
    assert report.is_unchanged
    assert open_head(head).header.details["metrics"] == {
        split: scores.to_dict() for split, scores in report.probe.items()
    }
    result = featx_cli("compare", head, tuned, "--no-onnx", "--json")
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.stdout)["heads"]
    assert (first["cut"], second["cut"]) == ("penultimate", "stage3")
    assert second["num_trained"] == 222_147
    only = report.comparison
    assert second["comparison"]["num_only_first"] == only.num_only_probe
    assert second["comparison"]["num_only_this"] == only.num_only_tuned


def test_images_can_be_left_out(maps, tmp_path):
    cache = open_features(maps)
    names = [cache.sample_ids[row] for row in cache.rows("train")[:5]]
    (tmp_path / "exclude.csv").write_text("path,drop\n" + "".join(f"{n},true\n" for n in names))
    out = tmp_path / "tuned.safetensors"
    result = featx_cli("finetune", maps, "-o", out, *QUICK, "--exclude", tmp_path / "exclude.csv")
    assert result.exit_code == 0, result.output
    assert "5 images are left out of training as asked" in result.stderr
    head = open_head(out)
    assert head.header.details["excluded"] == names
    trained = head.header.details["metrics"]["train"]["num_samples"]
    assert trained == len(cache.rows("train")) - 5
    assert not staleness_of(head, cache).is_stale


def test_random_weights_are_told_where_they_are_not_asked_for(tmp_path):
    random = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    source = (tmp_path / "photos", "-b", "tiny", "--cut", "input", "-o", tmp_path / "t")
    quick = ("--lr", "0.001", "--epochs", "1")
    scratch = featx_cli("finetune", *source, "--scratch", *quick)
    assert scratch.exit_code == 0, scratch.output
    assert "are random" not in scratch.stderr
    again = featx_cli("finetune", *source, *quick)
    assert "are random" in again.stderr
    assert "--weights default and --overwrite" in again.stderr
    head = featx_cli("train-head", tmp_path / "features-input.h5", "-o", tmp_path / "h")
    assert head.exit_code == 0, head.output
    assert "are random, and so are the features" in head.stderr


def test_a_head_takes_weights_that_were_moved(maps, tmp_path):
    moved = tmp_path / "moved.safetensors"
    shutil.copy(BUNDLED_WEIGHTS, moved)
    result = featx_cli("train-head", maps, "-o", tmp_path / "a", "-w", moved)
    assert result.exit_code == 0, result.output
    usual = featx_cli("train-head", maps, "-o", tmp_path / "b")
    assert usual.exit_code == 0, usual.output
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    vectors = write_cache(tmp_path / "v.h5", **separable())
    refused = featx_cli("train-head", vectors, "-o", tmp_path / "d", "-w", moved)
    assert "--weights has no effect" in refused.stderr


def test_from_scratch_there_is_no_probe(maps, tmp_path):
    options = FinetuneOptions(lr=0.001, max_epochs=1, scratch=True)
    report = finetune(maps, tmp_path / "scratch.safetensors", options)
    assert (report.probe, report.comparison) == ({}, None)
    text = featx_cli("finetune", maps, "-o", tmp_path / "s2", *QUICK, "--scratch").stdout
    assert "from scratch" in text
    assert "probe" not in text


# --- what is refused ------------------------------------------------------------------------------


def test_vectors_are_refused_with_what_to_do(tmp_path):
    cache = write_cache(tmp_path / "features.h5", **separable())
    for arguments in ((), ("--scratch",)):
        result = featx_cli("finetune", cache, "-o", tmp_path / "t", *arguments)
        assert result.exit_code == 1
        assert "'featx backbones tiny' lists the cuts" in result.stderr
        assert "--cut" in result.stderr
    with pytest.raises(ArtifactMismatch, match="nothing to train"):
        finetune(cache, tmp_path / "t")
    assert [path.name for path in tmp_path.iterdir()] == ["features.h5"]


def test_options_that_do_not_go_together_are_wrong_usage(maps, tmp_path):
    assert "--cut has no meaning for" in usage_error(maps, "--cut", "stage2")
    assert "A SOURCE needs --cut" in usage_error(tmp_path)
    assert "has no features-CUT.h5" in usage_error("-o", tmp_path / "tuned.safetensors")
    assert "use train-head" in usage_error(tmp_path, "--cut", "penultimate")
    scratch = usage_error(tmp_path, "--cut", "penultimate", "--scratch")
    assert "--scratch needs --cut input" in scratch


@pytest.mark.parametrize("flags", ["--momentum 0.8", "--gamma 0.5", "--step-size 2 --warmup 0.2"])
def test_options_without_effect_are_wrong_usage(maps, flags):
    assert f"{flags.split()[-2]} has" in usage_error(maps, *flags.split())


def test_options_out_of_range_are_named_as_flags(maps, tmp_path):
    for flag, value in (("--epochs", "0"), ("--lr", "0"), ("--patience", "0"), ("--clip", "-1")):
        result = featx_cli("finetune", maps, "-o", tmp_path / "t", flag, value)
        assert result.exit_code == 1, result.output
        assert f"Error: {flag} must be " in result.stderr


def test_a_foreign_file_in_the_way_is_left(maps, tmp_path):
    notes = tmp_path / "notes.safetensors"
    notes.write_text("mine")
    result = featx_cli("finetune", maps, "-o", notes, *QUICK)
    assert result.exit_code == 1
    assert "is not a head that featx wrote" in result.stderr
    assert notes.read_text() == "mine"
