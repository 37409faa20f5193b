"""Export: the file proves itself, or is not written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import featx
from featx.backbones.tiny import WEIGHTS_FILE
from featx.classifier.seal import is_sealed
from featx.classifier.session import open_classifier
from featx.errors import (
    ArtifactExists,
    ArtifactMismatch,
    ArtifactMissing,
    BackboneError,
    ConfigError,
    ParityError,
    SourceError,
)
from featx.features.file import open_features
from featx.heads.head import open_head, save_head
from featx.stages.export import ExportOptions, export_onnx
from featx.stages.extract import ExtractOptions, extract
from featx.stages.train import train_head


class Trained:
    """A source with its features and head, in one folder."""

    def __init__(self, folder: Path, source: Path, **settings: object) -> None:
        self.folder, self.source = folder, source
        self.features, self.head = folder / "f.h5", folder / "h.safetensors"
        self.model = folder / "m.onnx"
        options = ExtractOptions(**({"backbone": "tiny"} | settings))  # type: ignore[arg-type]
        extract(source, self.features, options)
        train_head(self.features, self.head)


@pytest.fixture
def trained(photos: Callable[..., Path], tmp_path: Path) -> Trained:
    return Trained(tmp_path, photos({"ants": 8, "bees": 8}))


def test_the_file_answers_what_the_head_answers(trained: Trained) -> None:
    report = export_onnx(trained.head, trained.model)
    assert report.proof is not None
    assert report.proof.num_images == 16  # all, as there are fewer than 64
    assert report.proof.top1_agreement == 1
    assert 0 <= report.proof.max_difference <= report.proof.bound
    assert report.num_bytes == trained.model.stat().st_size


def test_the_proof_stands_in_the_file(trained: Trained) -> None:
    report = export_onnx(trained.head, trained.model)
    header = open_classifier(trained.model).header
    assert report.proof is not None
    assert header.details["proof"].items() >= report.proof.to_dict().items()
    assert header.fingerprint == open_head(trained.head).header.fingerprint
    assert header.classes == ("ants", "bees")


def test_a_head_exported_twice_gives_the_same_bytes(trained: Trained) -> None:
    options = ExportOptions(overwrite=True)
    contents = []
    for _ in range(2):
        export_onnx(trained.head, trained.model, options)
        contents.append(trained.model.read_bytes())
    assert contents[0] == contents[1]
    assert is_sealed(contents[0])


def test_no_folder_of_this_machine_stands_in_the_graph(trained: Trained) -> None:
    export_onnx(trained.head, trained.model)
    graph = onnx.load(trained.model).graph.SerializeToString()
    assert str(Path(featx.__file__).parent).encode() not in graph
    assert b".py" not in graph


def test_at_least_64_images_are_compared(photos: Callable[..., Path], tmp_path: Path) -> None:
    trained = Trained(tmp_path, photos({"ants": 50, "bees": 50}))
    report = export_onnx(trained.head, trained.model)
    assert report.proof is not None
    assert report.proof.num_images == 64


def test_a_head_that_was_altered_is_caught(trained: Trained) -> None:
    """The proof compares with the given head; one whose weights moved gives other logits."""
    head = open_head(trained.head)
    (weight, bias), *_ = head.layers
    cache = open_features(trained.features)
    other = save_head(trained.folder / "other.safetensors", replace(head, layers=((weight, bias),)))
    np.testing.assert_array_equal(other.logits(cache.features), head.logits(cache.features))
    swapped = save_head(
        trained.folder / "swapped.safetensors", replace(head, layers=((weight[::-1], bias[::-1]),))
    )
    assert not np.allclose(swapped.logits(cache.features), head.logits(cache.features))
    report = export_onnx(trained.folder / "swapped.safetensors", trained.model)
    assert report.proof is not None  # the file follows the head it is given, whatever its quality


def test_features_of_another_preprocessing_are_caught(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the graph preprocessed differently from extraction, the proof would fail."""
    from featx.classifier import graph

    def without_antialias(op: str, *arguments: object, **attributes: object) -> object:
        attributes.pop("antialias", None)
        attributes.pop("exclude_outside", None)
        return make_node(op, *arguments, **attributes)

    make_node = graph.helper.make_node
    monkeypatch.setattr(graph.helper, "make_node", without_antialias)
    with pytest.raises(ParityError) as caught:
        export_onnx(trained.head, trained.model)
    assert caught.value.difference > caught.value.bound
    assert not trained.model.exists()


def test_a_bound_that_is_too_strict_publishes_nothing(trained: Trained) -> None:
    with pytest.raises(ParityError, match="--atol") as caught:
        export_onnx(trained.head, trained.model, ExportOptions(atol=1e-12))
    assert caught.value.bound == 1e-12
    assert not trained.model.exists()


@pytest.mark.parametrize("atol", [0, -1, float("nan"), float("inf")])
def test_a_bound_must_be_a_positive_number(atol: float) -> None:
    with pytest.raises(ConfigError, match="atol must be above 0"):
        ExportOptions(atol=atol)


def test_existing_output_is_kept(trained: Trained) -> None:
    trained.model.write_text("mine")
    with pytest.raises(ArtifactExists):
        export_onnx(trained.head, trained.model)
    assert trained.model.read_text() == "mine"


def test_images_that_are_gone(trained: Trained) -> None:
    shutil.rmtree(trained.source)
    with pytest.raises(SourceError, match="--no-verify"):
        export_onnx(trained.head, trained.model)
    report = export_onnx(trained.head, trained.model, ExportOptions(verify=False))
    assert report.proof is None
    assert open_classifier(trained.model).header.details["proof"] is None


def test_an_image_that_changed(trained: Trained) -> None:
    first, second = trained.source / "ants" / "000.jpg", trained.source / "ants" / "001.jpg"
    first.write_bytes(second.read_bytes())
    with pytest.raises(SourceError, match=r"ants/000\.jpg.*has changed"):
        export_onnx(trained.head, trained.model)
    assert not trained.model.exists()


def test_images_that_moved(trained: Trained) -> None:
    trained.source.rename(trained.folder / "elsewhere")
    options = ExportOptions(source=str(trained.folder / "elsewhere"))
    report = export_onnx(trained.head, trained.model, options)
    assert report.proof is not None


def test_features_that_are_gone_or_moved(trained: Trained) -> None:
    trained.features.rename(trained.folder / "moved.h5")
    with pytest.raises(ArtifactMissing, match="--features"):
        export_onnx(trained.head, trained.model)
    report = export_onnx(
        trained.head, trained.model, ExportOptions(features=trained.folder / "moved.h5")
    )
    assert report.proof is not None


def test_features_of_another_head(trained: Trained, photos: Callable[..., Path]) -> None:
    other = trained.folder / "other.h5"
    extract(trained.source, other, ExtractOptions(backbone="tiny", layer="stage2"))
    with pytest.raises(ArtifactMismatch, match="layer: expected 'flatten', found 'stage2'"):
        export_onnx(trained.head, trained.model, ExportOptions(features=other))


class TestWeights:
    """Found again by their sha256, wherever they are now."""

    @pytest.fixture
    def with_file(self, photos: Callable[..., Path], tmp_path: Path) -> Trained:
        shutil.copy(WEIGHTS_FILE, tmp_path / "mine.safetensors")
        weights = str(tmp_path / "mine.safetensors")
        return Trained(tmp_path, photos({"ants": 4, "bees": 4}), weights=weights)

    def test_gone(self, with_file: Trained) -> None:
        (with_file.folder / "mine.safetensors").unlink()
        with pytest.raises(BackboneError, match=r"mine\.safetensors' does not exist"):
            export_onnx(with_file.head, with_file.model)

    def test_moved(self, with_file: Trained) -> None:
        moved = with_file.folder / "moved.safetensors"
        (with_file.folder / "mine.safetensors").rename(moved)
        report = export_onnx(with_file.head, with_file.model, ExportOptions(weights=str(moved)))
        assert report.proof is not None

    def test_replaced(self, with_file: Trained) -> None:
        import safetensors.torch

        path = with_file.folder / "mine.safetensors"
        state = safetensors.torch.load_file(path)
        state["head.bias"] = state["head.bias"] + torch.tensor(1, dtype=state["head.bias"].dtype)
        safetensors.torch.save_file(state, path)
        with pytest.raises(BackboneError, match="sha256"):
            export_onnx(with_file.head, with_file.model)
        assert not with_file.model.exists()


@pytest.mark.parametrize(
    "settings", [{"crop": "none"}, {"image_size": 40, "resize": 52}, {"layer": "stage1"}]
)
def test_every_preprocessing_and_layer_is_proven(
    photos: Callable[..., Path], tmp_path: Path, settings: dict[str, object]
) -> None:
    trained = Trained(tmp_path, photos({"ants": 6, "bees": 6}), **settings)
    report = export_onnx(trained.head, trained.model)
    assert report.proof is not None
    assert report.proof.top1_agreement == 1
