"""Evaluating: classes by name, splits as in training, and refusals."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from featx.errors import ImageError, SourceError
from featx.heads.head import open_head
from featx.stages.evaluate import evaluate
from featx.stages.export import export_onnx
from featx.stages.extract import ExtractOptions, extract
from featx.stages.train import train_head


@pytest.fixture
def trained(photos: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """Source, head and model of three colours."""
    source = photos({"ants": 12, "bees": 12, "wasps": 12})
    extract(source, tmp_path / "f.h5", ExtractOptions(backbone="tiny"))
    train_head(tmp_path / "f.h5", tmp_path / "h.safetensors")
    export_onnx(tmp_path / "h.safetensors", tmp_path / "m.onnx")
    return source, tmp_path / "h.safetensors", tmp_path / "m.onnx"


def test_the_training_source_gives_the_heads_own_table(trained: tuple[Path, Path, Path]) -> None:
    source, head, model = trained
    stored = open_head(head).header.details["metrics"]
    report = evaluate(model, source)
    assert set(report.metrics) == set(stored) == {"train", "val"}
    for split, scores in stored.items():
        assert report.metrics[split].num_samples == scores["num_samples"]
        assert report.metrics[split].top1 == pytest.approx(scores["top1"])
        assert report.metrics[split].log_loss == pytest.approx(scores["log_loss"], abs=0.02)


def test_fewer_classes_in_another_order(trained: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Alone, ``wasps`` is class 0 of its folder and class 2 of the model."""
    source, _, model = trained
    shutil.copytree(source / "wasps", tmp_path / "other" / "wasps")
    report = evaluate(model, tmp_path / "other")
    assert set(report.metrics) == {"all"}
    assert report.metrics["all"].num_samples == 12
    assert report.metrics["all"].top1 == 1


def test_an_unknown_class_is_named(trained: tuple[Path, Path, Path], tmp_path: Path) -> None:
    source, _, model = trained
    shutil.copytree(source / "wasps", tmp_path / "other" / "hornets")
    with pytest.raises(SourceError, match=r"does not know: hornets.*ants, bees, wasps"):
        evaluate(model, tmp_path / "other")


def test_an_unknown_class_without_images_does_no_harm(
    trained: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    source, _, model = trained
    shutil.copytree(source / "bees", tmp_path / "other" / "bees")
    (tmp_path / "other" / "hornets").mkdir()
    assert evaluate(model, tmp_path / "other").metrics["all"].top1 == 1


def test_images_without_labels(
    trained: tuple[Path, Path, Path], photos: Callable[..., Path]
) -> None:
    with pytest.raises(SourceError, match="featx predict"):
        evaluate(trained[2], photos({".": 2}, name="unlabelled"))


def test_a_bad_image_is_named(trained: tuple[Path, Path, Path]) -> None:
    source, _, model = trained
    (source / "bees" / "005.png").write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"bees/005\.png"):
        evaluate(model, source)


def test_progress_and_json(trained: tuple[Path, Path, Path]) -> None:
    source, _, model = trained
    seen: list[tuple[int, int]] = []
    report = evaluate(model, source, progress=lambda *numbers: seen.append(numbers))
    assert seen == [(i, 36) for i in range(1, 37)]
    assert set(report.to_dict()) == {"metrics", "seconds"}
    assert report.to_dict()["metrics"]["val"]["top1"] == report.metrics["val"].top1
