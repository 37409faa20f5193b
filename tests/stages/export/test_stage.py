"""Export: the file proves itself, or is not written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import featx
from featx.backbones.seal import graph_sha256, is_sealed
from featx.backbones.spec import Calibration
from featx.backbones.tiny import WEIGHTS_FILE
from featx.classifier.seal import read_sealed_header as open_sealed
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
from featx.extraction.options import ExtractOptions
from featx.features.file import open_features
from featx.heads.head import open_head, save_head
from featx.stages.check import check
from featx.stages.export import ExportOptions, export_onnx
from featx.stages.export.options import is_current
from featx.stages.export.stage import repeats_features
from featx.stages.extract import extract
from featx.stages.train import train_head
from featx.training.options import TrainOptions


def test_the_file_answers_what_the_head_answers(trained):
    report = export_onnx(trained.head, trained.model)
    assert report.proof is not None
    assert report.proof.num_images == 16  # all, as there are fewer than 64
    assert report.proof.top1_agreement == 1
    assert 0 <= report.proof.max_difference <= report.proof.bound
    assert report.proof.max_full_difference is None  # there is one way to decode
    assert "max_full_difference" not in report.header.details["proof"]
    assert report.num_bytes == trained.model.stat().st_size


@pytest.mark.parametrize("solver", ["lbfgs", "ridge"])
def test_a_class_without_training_images_leaves_the_bound_as_it_is(trained, solver):
    rows = ["path,label,split"]
    for path in sorted(trained.source.rglob("*.*")):
        rows.append(f"{path},{path.parent.name},train")
    other, bounds = trained.folder / "wasp.png", []
    Image.new("RGB", (30, 40), (90, 200, 10)).save(other)
    for more in ([], [f"{other},wasps,val"]):
        table = trained.folder / f"{len(more)}.csv"
        table.write_text("\n".join([*rows, *more]))
        features, head = table.with_suffix(".h5"), table.with_suffix(".safetensors")
        extract(table, features, ExtractOptions(backbone="tiny"))
        train_head(features, head, TrainOptions(solver=solver))
        proof = export_onnx(head, table.with_suffix(".onnx"), ExportOptions(max_drop=100)).proof
        assert proof is not None
        bounds.append(proof.bound)
    assert proof.untrained == (2,)
    assert bounds[1] <= 3 * bounds[0] < 3
    again = check(table.with_suffix(".onnx"), str(table)).repeated
    assert again is not None
    assert again.holds
    ranked = ExportOptions(outputs=("probabilities",), max_drop=100)
    export_onnx(head, trained.model, ranked)
    again = check(trained.model, str(table)).repeated
    assert again is not None
    assert again.holds


def test_the_proof_stands_in_the_file(trained):
    report = export_onnx(trained.head, trained.model)
    header = open_classifier(trained.model).header
    assert report.proof is not None
    assert header.details["proof"].items() >= report.proof.to_dict().items()
    assert header.fingerprint == open_head(trained.head).header.fingerprint
    assert header.classes == ("ants", "bees")


def test_a_head_exported_twice_gives_the_same_bytes(trained):
    contents = []
    for _ in range(2):
        export_onnx(trained.head, trained.model)
        contents.append(trained.model.read_bytes())
        trained.model.unlink()
    assert contents[0] == contents[1]
    assert is_sealed(contents[0])


def test_no_folder_of_this_machine_stands_in_the_graph(trained):
    export_onnx(trained.head, trained.model)
    graph = onnx.load(trained.model).graph.SerializeToString()
    assert str(Path(featx.__file__).parent).encode() not in graph
    assert b".py" not in graph


def test_at_least_64_images_are_compared(make_trained, photos, tmp_path):
    trained = make_trained(tmp_path, photos({"ants": 50, "bees": 50}))
    report = export_onnx(trained.head, trained.model)
    assert report.proof is not None
    assert report.proof.num_images == 64


def test_a_head_that_was_altered_is_caught(trained):
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


def test_features_of_another_preprocessing_are_caught(trained, monkeypatch):
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


def test_a_bound_that_is_too_strict_publishes_nothing(trained):
    with pytest.raises(ParityError, match="atol=…") as caught:
        export_onnx(trained.head, trained.model, ExportOptions(atol=1e-12))
    assert caught.value.bound == 1e-12
    assert not trained.model.exists()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_are_smaller_and_as_accurate(precision, trained):
    plain = export_onnx(trained.head, trained.folder / "fp32.onnx")
    report = export_onnx(trained.head, trained.model, ExportOptions(precision=precision))
    assert report.header.details["precision"] == precision
    assert report.num_bytes < 0.65 * plain.num_bytes
    proof = report.proof
    assert proof is not None
    assert proof.bound is None
    assert proof.max_difference > 1e-4  # it is another precision
    assert proof.accuracy is not None
    assert proof.accuracy.drop <= 1
    inside = onnx.load(trained.model).graph.initializer
    wanted = {"fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision]
    weights = [t for t in inside if len(t.dims) == 4 and max(t.dims) > 4]
    kinds = [t.data_type for t in weights]
    assert kinds.count(wanted) >= len(kinds) - 1  # int8 may leave the first convolution alone


def test_int8_features_are_exported_with_their_own_ranges(make_trained, photos, tmp_path):
    trained = make_trained(tmp_path, photos({"ants": 8, "bees": 8}), precision="int8")
    report = export_onnx(trained.head, trained.model)
    assert report.header.details["precision"] == "int8"
    assert report.proof is not None
    assert report.proof.bound is not None  # the features' own precision: logits are held to it
    assert report.proof.max_difference <= report.proof.bound


def test_features_in_a_precision_that_no_graph_has_are_held_to_accuracy(
    make_trained, photos, tmp_path
):
    trained = make_trained(
        tmp_path, photos({"ants": 8, "bees": 8}), precision="bf16", val_fraction=0.4
    )
    report = export_onnx(trained.head, trained.model)
    assert report.header.details["precision"] == "fp32"
    assert report.proof is not None
    assert report.proof.bound is None
    assert report.proof.accuracy is not None
    assert report.proof.accuracy.drop <= 1


@pytest.mark.parametrize("labelled", [True, False])
def test_a_precision_that_loses_accuracy_is_not_published(labelled, trained, monkeypatch):
    def blunt(trunk: onnx.ModelProto) -> onnx.ModelProto:
        for tensor in trunk.graph.initializer:
            if len(tensor.dims) == 4:
                values = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(-values, tensor.name))
        return trunk

    if not labelled:
        monkeypatch.setattr(
            "featx.stages.export.evidence.Evidence.validation", lambda _: np.zeros(0, np.int64)
        )
    monkeypatch.setattr("featx.classifier.graph.to_float16", blunt)
    options = ExportOptions(precision="fp16", card=trained.folder / "card.md")
    with pytest.raises(ParityError, match="max_drop") as caught:
        export_onnx(trained.head, trained.model, options)
    assert caught.value.difference > caught.value.bound == 1
    assert not trained.model.exists()
    assert not (trained.folder / "card.md").exists()
    report = export_onnx(trained.head, trained.model, replace(options, max_drop=100))
    assert report.proof is not None  # who allows everything gets it, with the loss on record


@pytest.mark.parametrize(
    ("opset", "ir_version", "precision"),
    [(18, 8, "int8"), (18, 8, "fp16"), (19, 9, None), (20, 9, None)],
)
def test_each_opset_answers_alike_in_the_ir_version_of_its_time(
    opset, ir_version, precision, trained
):
    options = ExportOptions(opset=opset, input="crop", precision=precision, max_drop=100)
    report = export_onnx(trained.head, trained.model, options)
    model = onnx.load(trained.model)
    assert model.ir_version == ir_version
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", opset)}
    assert report.header.details["opset"] == opset
    assert {node.domain for node in model.graph.node} == {""}


@pytest.mark.parametrize("input_kind", ["image", "crop", "tensor"])
@pytest.mark.parametrize("outputs", [["top-2"], ["features"], ["logits", "features"]])
def test_what_is_published_gives_what_was_proven(input_kind, outputs, trained):
    options = ExportOptions(input=input_kind, outputs=outputs)
    report = export_onnx(trained.head, trained.model, options)
    assert report.proof is not None
    assert report.proof.top1_agreement == 1
    opened = open_classifier(trained.model)
    assert list(opened.contract.outputs) == outputs
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    assert len(opened.run(opened.prepare(image)[None])) == len(outputs) + ("top-2" in outputs)


def test_the_graph_has_nothing_it_does_not_need(trained):
    for precision in ("fp32", "int8"):
        options = ExportOptions(precision=precision)  # type: ignore[arg-type]
        export_onnx(trained.head, trained.model, options)
        graph = onnx.load(trained.model).graph
        read = {name for node in graph.node for name in node.input}
        read |= {output.name for output in graph.output}
        assert all(set(node.output) & read for node in graph.node)
        assert {tensor.name for tensor in graph.initializer} <= read
        shared = [t for t in graph.initializer if t.data_type != onnx.TensorProto.INT8]
        values = [(t.data_type, tuple(t.dims), t.raw_data) for t in shared]
        assert len(set(values)) == len(values)
        ops = {node.op_type for node in graph.node}
        assert not ops & {"BatchNormalization", "Identity", "Constant", "Dropout"}
        assert "Div" not in {n.op_type for n in graph.node if not n.name.startswith("featx_")}


def test_a_graph_that_was_kept_gives_the_same_bytes_as_one_built_anew(trained, monkeypatch):
    export_onnx(trained.head, trained.model)
    kept = trained.model.read_bytes()
    trained.model.unlink()
    monkeypatch.setattr("featx.stages.export.stage.read_graph", lambda spec, **options: None)
    monkeypatch.setattr("featx.stages.export.stage.cache_graph", lambda *a, **options: None)
    export_onnx(trained.head, trained.model)
    model, before = onnx.load(trained.model), onnx.load_from_string(kept)
    assert [n.op_type for n in model.graph.node] == [n.op_type for n in before.graph.node]
    weights = {t.name: t.raw_data for t in model.graph.initializer}
    assert weights == {t.name: t.raw_data for t in before.graph.initializer}


def test_the_date_is_the_heads_or_what_the_environment_says(trained, monkeypatch):
    import os

    os.utime(trained.head, (1e9, 1e9))
    proof = export_onnx(trained.head, trained.model).header.details["proof"]
    assert proof["date"] == "2001-09-09T01:46:40Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    proof = export_onnx(trained.head, trained.model).header.details["proof"]
    assert proof["date"] == "1970-01-01T00:00:00Z"
    for wrong in ("yesterday", "", "1e9", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(ConfigError, match="SOURCE_DATE_EPOCH must be seconds"):
            export_onnx(trained.head, trained.model)


def test_the_proof_says_what_it_is_a_proof_of(trained):
    report = export_onnx(trained.head, trained.model)
    proof, head = report.header.details["proof"], open_head(trained.head)
    assert proof["head_sha256"] == head.header.details["sha256"]
    assert proof["weights_sha256"] == head.header.spec["weights_sha256"]
    assert proof["versions"]["onnxruntime"]
    assert proof["graph_sha256"] == graph_sha256(trained.model.read_bytes())
    assert set(proof["hard"]) == {"greyscale", "EXIF-rotated", "tiny", "large", "panoramic"}
    assert proof["accuracy"]["num_images"] == proof["accuracy"]["num_available"] > 0
    assert proof["accuracy"]["head"] == head.header.details["metrics"]["val"]["top1"]
    cache = open_features(trained.features)
    for witness in proof["witnesses"]:
        assert witness.keys() == {"digest", "logits"}
        (row,) = np.flatnonzero(
            (cache.digests == np.frombuffer(bytes.fromhex(witness["digest"]), np.uint8)).all(1)
        )
        expected = head.logits(cache.features[row : row + 1])[0]
        np.testing.assert_allclose(witness["logits"], expected, rtol=1e-5)


@pytest.mark.parametrize("as_table", [False, True])
def test_the_file_and_its_card_name_no_folder_and_no_image(
    photos, make_trained, tmp_path, as_table
):
    home = tmp_path / "ann.smith"
    home.mkdir()
    source = photos({"ants": 8, "bees": 8}, name="ann.smith/patients")
    (source / "ants/000.jpg").rename(source / "ants/John Doe 1970.jpg")
    if as_table:
        rows = [f"{path},{path.parent.name}" for path in sorted(source.rglob("*.*"))]
        (home / "patients.csv").write_text("\n".join(["path,label", *rows]))
        source = home / "patients.csv"
    weights = home / "weights.safetensors"
    shutil.copy(WEIGHTS_FILE, weights)
    trained = make_trained(home, source, weights=str(weights))
    card = home / "card.md"
    header = export_onnx(trained.head, trained.model, ExportOptions(card=card)).header
    assert header.details["source"] == source.name
    assert header.details["weights"] == "file:weights.safetensors"
    for path in (trained.model, card):
        content = path.read_bytes()
        for private in (b"ann.smith", b"John Doe", bytes(tmp_path), b"f.h5", b"h.safetensors"):
            assert private not in content, (path, private)
    named = ExportOptions(with_names=True)
    details = export_onnx(trained.head, trained.model, named).header.details
    assert details["source"] == str(source)
    assert details["weights"] == f"file:{weights}"
    names = {witness["sample_id"] for witness in details["proof"]["witnesses"]}
    assert any("John Doe 1970.jpg" in name for name in names)
    assert check(trained.model, source).is_fresh


def test_accuracy_is_that_of_labelled_validation_images(photos, make_trained, tmp_path):
    source = photos({"ants": 9, "bees": 9})
    rows = ["path,label,split"]
    for number, path in enumerate(sorted(source.rglob("*.*"))):
        split = "val" if number % 3 == 0 else "train"
        label = "" if number in (3, 12) else path.parent.name  # two of six have none
        rows.append(f"{path},{label},{split}")
    (tmp_path / "images.csv").write_text("\n".join(rows))
    trained = make_trained(tmp_path, tmp_path / "images.csv")
    proof = export_onnx(trained.head, trained.model).proof
    assert proof is not None
    assert proof.accuracy is not None
    assert (proof.accuracy.num_images, proof.accuracy.num_available) == (4, 4)
    assert proof.accuracy.file == proof.accuracy.head == 1


def test_few_validation_images_are_enough_where_that_is_asked_for(trained):
    report = export_onnx(trained.head, trained.model, ExportOptions(max_images=2))
    assert report.proof is not None
    assert report.proof.accuracy is not None
    assert report.proof.accuracy.num_images == 2 < report.proof.accuracy.num_available


@pytest.mark.parametrize(
    ("options", "match"),
    [({"max_drop": -1}, "max_drop must be 0 to 100"), ({"max_drop": float("nan")}, "max_drop"),
     ({"max_images": 0}, "max_images must be at least 1"), ({"precision": "fp8"}, "precision must"),
     ({"opset": 17}, "opset must be 18 to 20"), ({"opset": 21}, "opset must be 18 to 20"),
     ({"input": "photo"}, "input must be"), ({"outputs": []}, "at least one output"),
     ({"outputs": ["top-x"]}, "got 'top-x'")],
)  # fmt: skip
def test_options_that_cannot_be(options, match):
    with pytest.raises(ConfigError, match=match):
        ExportOptions(**options)


@pytest.mark.parametrize("atol", [0, -1, float("nan"), float("inf")])
def test_a_bound_must_be_a_positive_number(atol):
    with pytest.raises(ConfigError, match="atol must be above 0"):
        ExportOptions(atol=atol)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_is_no_model_is_never_replaced(trained, overwrite):
    foreign = onnx.helper.make_model(onnx.helper.make_graph([], "mine", [], []))
    for content in (b"", b"mine", foreign.SerializeToString(), trained.head.read_bytes()):
        trained.model.write_bytes(content)
        with pytest.raises(ArtifactExists, match=r"is not a model that featx wrote.*m-2\.onnx"):
            export_onnx(trained.head, trained.model, ExportOptions(overwrite=overwrite))
        assert trained.model.read_bytes() == content


def test_the_same_again_is_up_to_date_and_exports_nothing(trained, monkeypatch):
    card = trained.folder / "card.md"
    options = ExportOptions(max_images=5)
    first = export_onnx(trained.head, trained.model, options)
    before = trained.model.read_bytes(), trained.model.stat().st_mtime_ns
    assert not first.is_unchanged
    assert first.replaced == ""
    with monkeypatch.context() as patch:
        patch.setattr("featx.stages.export.stage._Export", None)
        again = export_onnx(trained.head, trained.model, replace(options, overwrite=True))
    assert again.is_unchanged
    assert again.header == first.header
    assert again.num_bytes == first.num_bytes
    assert not export_onnx(trained.head, trained.model, replace(options, card=card)).is_unchanged
    text = card.read_text()
    assert export_onnx(trained.head, trained.model, replace(options, card=card)).is_unchanged
    assert card.read_text() == text
    assert trained.model.read_bytes() == before[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"input": "crop"},
        {"outputs": ("logits",)},
        {"precision": "fp16"},
        {"opset": 18},
        {"atol": 0.5},
        {"max_images": 5},
        {"verify": False},
    ],
    ids=str,
)
def test_another_option_exports_again(trained, changes):
    export_onnx(trained.head, trained.model)
    report = export_onnx(trained.head, trained.model, ExportOptions(**changes))
    assert not report.is_unchanged
    assert report.replaced.startswith("linear, C = ")
    assert export_onnx(trained.head, trained.model, ExportOptions(**changes)).is_unchanged


def test_another_head_or_a_damaged_model_exports_again(trained):
    export_onnx(trained.head, trained.model)
    train_head(trained.features, trained.head, TrainOptions(strengths=(0.5,)))
    assert not export_onnx(trained.head, trained.model).is_unchanged
    whole = trained.model.read_bytes()
    for damaged in (whole[:1000], whole[:-1], whole[:5000] + b"?" + whole[5001:]):
        trained.model.write_bytes(damaged)
        report = export_onnx(trained.head, trained.model)
        assert report.replaced == "a model that cannot be read"
        assert trained.model.read_bytes() == whole


def test_features_that_changed_since_the_head_are_looked_at(trained, photos):
    export_onnx(trained.head, trained.model)
    (trained.source / "ants" / "000.jpg").unlink()
    extract(trained.source, trained.features, ExtractOptions(backbone="tiny", val_fraction=0.4))
    header = open_sealed(trained.model)
    assert not is_current(header, open_head(trained.head), trained.head, ExportOptions())
    trained.features.unlink()
    assert is_current(header, open_head(trained.head), trained.head, ExportOptions())


def test_images_that_are_gone(trained):
    shutil.rmtree(trained.source)
    with pytest.raises(SourceError, match="verify=False"):
        export_onnx(trained.head, trained.model)
    report = export_onnx(trained.head, trained.model, ExportOptions(verify=False))
    assert report.proof is None
    assert open_classifier(trained.model).header.details["proof"] is None


def test_an_image_that_changed(trained):
    first, second = trained.source / "ants" / "000.jpg", trained.source / "ants" / "001.jpg"
    first.write_bytes(second.read_bytes())
    with pytest.raises(SourceError, match=r"ants/000\.jpg.*has changed"):
        export_onnx(trained.head, trained.model)
    assert not trained.model.exists()


def test_images_that_moved(trained):
    trained.source.rename(trained.folder / "elsewhere")
    options = ExportOptions(source=str(trained.folder / "elsewhere"))
    report = export_onnx(trained.head, trained.model, options)
    assert report.proof is not None


def test_features_that_are_gone_or_moved(trained):
    trained.features.rename(trained.folder / "moved.h5")
    with pytest.raises(ArtifactMissing, match="features=…"):
        export_onnx(trained.head, trained.model)
    report = export_onnx(
        trained.head, trained.model, ExportOptions(features=trained.folder / "moved.h5")
    )
    assert report.proof is not None


def test_features_of_another_head(trained, photos):
    other = trained.folder / "other.h5"
    extract(trained.source, other, ExtractOptions(backbone="tiny", layer="stage2"))
    with pytest.raises(ArtifactMismatch, match="layer: expected 'flatten', found 'stage2'"):
        export_onnx(trained.head, trained.model, ExportOptions(features=other))


class TestWeights:
    """Found again by their sha256, wherever they are now."""

    @pytest.fixture
    def with_file(self, make_trained: Any, photos: Callable[..., Path], tmp_path: Path) -> Any:
        shutil.copy(WEIGHTS_FILE, tmp_path / "mine.safetensors")
        weights = str(tmp_path / "mine.safetensors")
        return make_trained(tmp_path, photos({"ants": 4, "bees": 4}), weights=weights)

    def test_gone(self, with_file):
        (with_file.folder / "mine.safetensors").unlink()
        with pytest.raises(BackboneError, match=r"mine\.safetensors' does not exist"):
            export_onnx(with_file.head, with_file.model)

    def test_moved(self, with_file):
        moved = with_file.folder / "moved.safetensors"
        (with_file.folder / "mine.safetensors").rename(moved)
        report = export_onnx(with_file.head, with_file.model, ExportOptions(weights=str(moved)))
        assert report.proof is not None

    def test_replaced(self, with_file):
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
def test_every_preprocessing_and_layer_is_proven(make_trained, photos, tmp_path, settings):
    trained = make_trained(tmp_path, photos({"ants": 6, "bees": 6}), **settings)
    report = export_onnx(trained.head, trained.model)
    assert report.proof is not None
    assert report.proof.top1_agreement == 1


@pytest.mark.parametrize("made_in", ["fp32", "tf32", "bf16", "fp16", "int8"])
@pytest.mark.parametrize("file", ["fp32", "fp16", "int8"])
def test_only_fp32_and_int8_files_repeat_features_and_only_their_own(made_in, file, trained):
    head = open_head(trained.head)
    spec = head.header.spec | {"precision": made_in}
    if made_in == "int8":
        spec["calibration"] = Calibration((("relu", 0.0, 1.0),)).to_dict()
    other = replace(head, header=replace(head.header, spec=spec))
    exact = made_in in ("fp32", "int8") and file == made_in
    assert repeats_features(other, file) == exact


def test_outputs_are_no_other_files_of_the_export(trained):
    before = trained.head.read_bytes()
    (trained.folder / "link").symlink_to(trained.head)
    for output, card in (
        (trained.model, trained.model),
        (trained.model, trained.head),
        (trained.folder / "link", None),
        (trained.features, None),
        (trained.folder / f"{trained.features.name}.partial", None),
    ):
        with pytest.raises(ConfigError, match="would replace"):
            export_onnx(trained.head, output, ExportOptions(card=card))
    assert trained.head.read_bytes() == before
    assert not trained.model.exists()
