"""Evaluating: classes by name, splits as in training, and refusals."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import featx_cli
from PIL import Image

from featx.classifier.session import Classifier, open_classifier
from featx.errors import ArtifactMismatch, BadImages, ConfigError, SourceError
from featx.extraction.options import ExtractOptions
from featx.features.contents import HeldOut
from featx.features.file import open_features
from featx.heads.head import open_head
from featx.images.decode import content_digest
from featx.stages.evaluate import evaluate
from featx.stages.export import export_onnx
from featx.stages.extract import extract
from featx.stages.train import train_head


@pytest.fixture
def trained(photos: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """Source, head and model of three colours."""
    source = photos({"ants": 12, "bees": 12, "wasps": 12})
    extract(source, tmp_path / "f.h5", ExtractOptions(backbone="tiny"))
    train_head(tmp_path / "f.h5", tmp_path / "h.safetensors")
    export_onnx(tmp_path / "h.safetensors", tmp_path / "m.onnx")
    return source, tmp_path / "h.safetensors", tmp_path / "m.onnx"


def test_the_training_source_gives_the_heads_own_table(trained):
    source, head, model = trained
    stored = open_head(head).header.details["metrics"]
    report = evaluate(model, source)
    assert set(report.metrics) == set(stored) == {"train", "val"}
    for split, scores in stored.items():
        assert report.metrics[split].num_samples == scores["num_samples"]
        assert report.metrics[split].top1 == pytest.approx(scores["top1"])
        assert report.metrics[split].log_loss == pytest.approx(scores["log_loss"], abs=0.02)


def test_images_run_in_batches_as_predict_resizes_them(trained, monkeypatch):
    source, _, model = trained
    sizes, run = [], Classifier.run

    def count(classifier: Classifier, inputs: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(inputs))
        return run(classifier, inputs)

    monkeypatch.setattr(Classifier, "run", count)
    evaluate(model, source)
    assert sum(sizes) == 36
    assert len(sizes) == 3


def test_the_training_source_is_known_wherever_it_is(trained, tmp_path):
    source, _, model = trained
    moved = source.rename(tmp_path / "elsewhere")
    (moved / "ants").rename(moved / "renamed")
    (moved / "renamed").rename(moved / "ants")
    assert set(evaluate(model, moved).metrics) == {"train", "val"}
    shutil.copytree(moved / "wasps", source / "wasps")  # another source where it was
    assert set(evaluate(model, source).metrics) == {"all"}


def test_so_it_does_after_an_update_that_kept_splits(trained, tmp_path):
    source, head, model = trained
    for path in sorted((source / "bees").iterdir())[:6]:
        path.rename(source / "wasps" / f"was a bee {path.name}")
    for number in range(20):
        Image.new("RGB", (32, 32), (90, number, 20)).save(source / "bees" / f"new {number}.png")
    extract(source, tmp_path / "f.h5", ExtractOptions(backbone="tiny"))
    extract(source, tmp_path / "fresh.h5", ExtractOptions(backbone="tiny"))
    updated, fresh = open_features(tmp_path / "f.h5"), open_features(tmp_path / "fresh.h5")
    assert (updated.splits != fresh.splits).any()
    train_head(tmp_path / "f.h5", head)
    export_onnx(head, model)
    stored = open_head(head).header.details["metrics"]
    report = evaluate(model, source)
    assert set(report.metrics) == set(stored) == {"train", "val"}
    for split, scores in stored.items():
        assert report.metrics[split].num_samples == scores["num_samples"]
        assert report.metrics[split].top1 == pytest.approx(scores["top1"])


def test_images_that_all_trained_are_called_so(trained, tmp_path):
    source, head, model = trained
    extract(
        source, tmp_path / "f.h5", ExtractOptions(backbone="tiny", val_fraction=0, resplit=True)
    )
    train_head(tmp_path / "f.h5", head)
    export_onnx(head, model)
    assert set(evaluate(model, source).metrics) == {"train"}


def test_fewer_classes_in_another_order(trained, tmp_path):
    """Alone, ``wasps`` is class 0 of its folder and class 2 of the model."""
    source, _, model = trained
    shutil.copytree(source / "wasps", tmp_path / "other" / "wasps")
    report = evaluate(model, tmp_path / "other")
    assert set(report.metrics) == {"all"}
    assert report.metrics["all"].num_samples == 12
    assert report.metrics["all"].top1 == 1


def test_an_unknown_class_is_named(trained, tmp_path):
    source, _, model = trained
    shutil.copytree(source / "wasps", tmp_path / "other" / "hornets")
    with pytest.raises(SourceError, match=r"does not know: hornets.*ants, bees, wasps"):
        evaluate(model, tmp_path / "other")


def test_an_unknown_class_without_images_does_no_harm(trained, tmp_path):
    source, _, model = trained
    shutil.copytree(source / "bees", tmp_path / "other" / "bees")
    (tmp_path / "other" / "hornets").mkdir()
    assert evaluate(model, tmp_path / "other").metrics["all"].top1 == 1


def test_images_without_labels(trained, photos):
    with pytest.raises(SourceError, match="featx predict"):
        evaluate(trained[2], photos({".": 2}, name="unlabelled"))


def test_a_bad_image_is_named(trained):
    source, _, model = trained
    (source / "bees" / "005.png").write_bytes(b"broken")
    with pytest.raises(BadImages, match=r"1 of 36 images.*\n  bees/005\.png: not an image"):
        evaluate(model, source)


@pytest.fixture
def damaged(trained: tuple[Path, Path, Path]) -> tuple[Path, Path]:
    """Source and model; five images of the source are bad, each in its own way."""
    source, _, model = trained
    (source / "ants" / "000.jpg").write_bytes(b"")
    (source / "bees" / "001.jpg").write_bytes((source / "bees" / "000.jpg").read_bytes()[:-9])
    (source / "bees" / "new.jpg").symlink_to("nowhere.jpg")
    (source / "wasps" / "zz.jpg").write_bytes(b"<html>")
    os.mkfifo(source / "wasps" / "pipe.jpg")
    return source, model


BAD = ["ants/000.jpg", "bees/001.jpg", "bees/new.jpg", "wasps/pipe.jpg", "wasps/zz.jpg"]


def test_all_bad_images_are_named_at_once(damaged):
    source, model = damaged
    seen: list[int] = []
    with pytest.raises(BadImages, match=r"^5 of 39 images cannot be used:\n") as caught:
        evaluate(model, source, progress=lambda done, _: seen.append(done))
    assert [name for name, _ in caught.value.images] == BAD
    reasons = dict(caught.value.images)
    assert reasons["ants/000.jpg"] == "the file is empty."
    assert "truncated" in reasons["bees/001.jpg"]
    assert str(caught.value).endswith("leave them out with on_error='skip'.")
    assert seen[-1] == 39


def test_bad_images_can_be_left_out(damaged):
    source, model = damaged
    report = evaluate(model, source, on_error="skip", stale=True)
    assert sum(scores.num_samples for scores in report.metrics.values()) == 34
    assert [name for name, _ in report.skipped] == BAD
    assert [name for name, _ in report.to_dict()["skipped"]] == BAD
    for name in BAD:
        (source / name).unlink()
    without = evaluate(model, source, stale=True)
    assert without.skipped == ()
    assert without.metrics == report.metrics


def test_nothing_is_scored_where_no_labelled_image_can_be_used(trained, photos):
    source = photos({"ants": 2, ".": 3}, name="other")
    for path in (source / "ants").iterdir():
        path.write_bytes(b"")
    with pytest.raises(BadImages, match=r"2 of 5 images.*\n.*\n.*\nNone with a label is left"):
        evaluate(trained[2], source, on_error="skip")


def test_larger_images_can_be_refused(trained):
    source, _, model = trained
    Image.new("RGB", (200, 200)).save(source / "ants" / "large.png")
    with pytest.raises(BadImages, match=r"large\.png: 200×200 pixels is more than the 39999"):
        evaluate(model, source, max_pixels=39_999)
    assert evaluate(model, source, max_pixels=40_000, stale=True).skipped == ()


@pytest.mark.parametrize("options", [{"max_pixels": 0}, {"on_error": "ignore"}])
def test_options_are_checked_first(tmp_path, options):
    with pytest.raises(ConfigError, match=r"max_pixels|on_error"):
        evaluate(tmp_path / "none.onnx", tmp_path, **options)


def test_the_command_names_or_leaves_out(damaged):
    source, model = damaged
    command = ["evaluate", str(model), str(source), "--stale"]
    failed = featx_cli(*command)
    assert failed.exit_code == 1
    assert all(name in failed.stderr for name in BAD)
    done = featx_cli(*command, "--on-error", "skip")
    assert done.exit_code == 0
    assert "5 images that cannot be used" in done.stdout
    assert "  wasps/pipe.jpg: not a regular file." in done.stdout
    small = featx_cli(*command, "--on-error", "skip", "--max-pixels", "1000")
    assert "… and" in small.stdout
    assert "allowed" in small.stdout


def test_progress_and_json(trained):
    source, _, model = trained
    seen: list[tuple[int, int]] = []
    report = evaluate(model, source, progress=lambda *numbers: seen.append(numbers))
    assert seen == [(i, 36) for i in range(1, 37)]
    assert set(report.to_dict()) == {"metrics", "classes", "skipped", "seconds", "stale"}
    assert report.to_dict()["metrics"]["val"]["top1"] == report.metrics["val"].top1


# --- a source that has changed ------------------------------------------------------------------


def train_images(source: Path, model: Path) -> list[Path]:
    """Return the images of a source that trained a model, and those held out last."""
    held_out = HeldOut.from_text(open_classifier(model).header.details["held_out"], path=model)
    paths = sorted(source.rglob("*.*"))
    digests = b"".join(content_digest(path.read_bytes()) for path in paths)
    is_val = held_out.contains(np.frombuffer(digests, np.uint8).reshape(-1, 16))
    return [path for path, val in zip(paths, is_val.tolist(), strict=True) if not val]


def relabel(path: Path) -> None:
    path.rename(path.parents[1] / "wasps" / f"moved {path.name}")


def add(path: Path) -> None:
    Image.new("RGB", (30, 20), (1, 2, 3)).save(path.with_name("new.png"))


@pytest.mark.parametrize("change", [relabel, Path.unlink, add])
def test_a_source_whose_training_images_changed_is_scored_only_on_demand(trained, change, caplog):
    source, _, model = trained
    change(train_images(source, model)[0])
    with pytest.raises(ArtifactMismatch, match=r"is stale beside .*stale=True"):
        evaluate(model, source)
    report = evaluate(model, source, stale=True)
    assert report.stale is not None
    assert set(report.metrics) == {"train", "val"}
    assert caplog.text.count("The model is stale") == 1
    result = featx_cli("evaluate", model, source, "--stale")
    assert result.exit_code == 0
    assert "stale" in result.stdout


def test_images_left_out_by_an_option_do_not_make_it_stale(trained):
    source, _, model = trained
    report = evaluate(model, source, on_error="skip", max_pixels=1200)
    assert report.skipped
    assert report.stale is None


def test_other_validation_images_do_not_make_it_stale(trained):
    source, _, model = trained
    trains = set(train_images(source, model))
    held_out = [path for path in sorted(source.rglob("*.*")) if path not in trains]
    relabel(held_out[0])
    held_out[-1].unlink()
    report = evaluate(model, source)
    assert report.stale is None
    assert report.metrics["train"].num_samples == len(trains)


def test_images_that_were_left_out_of_training_are_no_change(photos, tmp_path):
    source = photos({"ants": 12, "bees": 12})
    (source / "ants" / "broken.png").write_bytes(b"no image")
    extract(source, tmp_path / "f.h5", ExtractOptions(backbone="tiny", on_error="skip"))
    train_head(tmp_path / "f.h5", tmp_path / "h.safetensors")
    export_onnx(tmp_path / "h.safetensors", tmp_path / "m.onnx")
    with pytest.raises(BadImages):
        evaluate(tmp_path / "m.onnx", source)
    report = evaluate(tmp_path / "m.onnx", source, on_error="skip")
    assert report.stale is None
    assert len(report.skipped) == 1
    train_images(source, tmp_path / "m.onnx")[0].unlink()
    with pytest.raises(ArtifactMismatch):
        evaluate(tmp_path / "m.onnx", source, on_error="skip")


def test_a_file_for_images_of_one_shape_scores_these_and_says_what_takes_the_others(trained):
    source, head, model = trained
    for number, path in enumerate(sorted(source.rglob("*.jpg"))):
        Image.effect_noise((64, 48 if number % 4 else 40), 99).convert("RGB").save(path)
    export_onnx(head, model, image_shape=(48, 64), verify=False)
    with pytest.raises(BadImages, match=r"takes images of 64×48 pixels alone") as caught:
        evaluate(model, source, stale=True)
    assert "exported without image_shape=… takes images of any shape." in caught.value.advice
    report = evaluate(model, source, stale=True, on_error="skip")
    assert sum(scores.num_samples for scores in report.metrics.values()) == 36 - len(report.skipped)
    assert 0 < len(report.skipped) < 36
