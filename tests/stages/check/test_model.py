"""featx check of a model: its proof is shown, and repeated on images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import featx_cli
from onnx import helper

import featx
from featx.artifact import Header
from featx.classifier.seal import seal
from featx.classifier.session import open_classifier
from featx.errors import ArtifactInvalid, ArtifactMismatch, ConfigError
from featx.stages.check import CheckOptions, check


@pytest.fixture
def source(photos: Callable[..., Path]) -> Path:
    return photos({"ants": 6, "bees": 6})


@pytest.fixture
def head(source: Path, tmp_path: Path) -> Path:
    options = featx.ExtractOptions(backbone="tiny", val_fraction=0.4)
    featx.extract(source, tmp_path / "f.h5", options)
    featx.train_head(tmp_path / "f.h5", tmp_path / "h.safetensors")
    return tmp_path / "h.safetensors"


@pytest.fixture
def model(head: Path) -> Path:
    path = head.with_name("m.onnx")
    featx.export_onnx(head, path)
    return path


def command(*arguments: object) -> tuple[int, str]:
    result = featx_cli("check", *arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def with_details(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Give a model other details, rightly sealed, as a forger would."""
    header = open_classifier(path).header
    details = json.loads(json.dumps(header.details))
    change(details)
    forged: Header = replace(header, details=details)
    model = onnx.load(path)
    entries = {entry.key: entry.value for entry in model.metadata_props if entry.key != "sha256"}
    del model.metadata_props[:]
    helper.set_model_props(model, entries | {"featx": forged.to_json()})
    path.write_bytes(seal(model.SerializeToString(deterministic=True)))


def test_without_images_the_proof_is_shown(model):
    report = check(model)
    assert report.is_fresh
    assert report.repeated is None
    assert report.proof is not None
    assert report.proof["num_images"] == 12
    code, output = command(model)
    assert code == 0
    assert "12 images: same class in 100%" in output
    assert "EXIF-rotated" in output
    assert "validation images" in output
    assert "proven" in output


def test_with_images_it_is_repeated(model, source):
    report = check(model, source)
    again = report.repeated
    assert again is not None
    assert report.is_fresh
    assert (again.num_found, again.num_agreeing) == (again.num_witnesses, again.num_witnesses)
    assert again.max_difference is not None
    assert again.max_difference <= again.bound
    assert again.accuracy == again.recorded_accuracy
    code, output = command(model, source)
    assert code == 0
    assert "holds: same class in 12 of 12 images" in output
    assert "when it was exported" in output
    assert json.loads(command(model, source, "--json")[1])["repeated"]["num_found"] == 12


def test_a_file_that_answers_otherwise_does_not_hold(model, source):
    def swap(details: dict[str, Any]) -> None:
        for image in details["proof"]["witnesses"]:
            image["logits"].reverse()

    with_details(model, swap)
    report = check(model, source)
    assert not report.is_fresh
    code, output = command(model, source)
    assert code == 1
    assert "DOES NOT HOLD" in output


def test_images_in_other_folders_are_found_by_their_content(model, source, tmp_path):
    for number, path in enumerate(sorted(source.rglob("*.*"))[:7]):
        (tmp_path / "flat").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "flat" / f"{number}{path.suffix}")
    again = check(model, tmp_path / "flat").repeated
    assert again is not None
    assert again.holds
    assert again.num_found == 7
    assert again.accuracy is None  # a flat folder has no labels
    code, output = command(model, tmp_path / "flat")
    assert code == 0
    assert "5 of 12 images of the proof, or changed" in output


def test_other_images(model, photos, tmp_path):
    from PIL import Image

    (tmp_path / "other" / "ants").mkdir(parents=True)
    Image.new("RGB", (30, 40), (3, 4, 5)).save(tmp_path / "other" / "ants" / "a.png")
    with pytest.raises(ArtifactMismatch, match="holds none of the 12 images"):
        check(model, tmp_path / "other")


@pytest.mark.parametrize("outputs", [("probabilities",), ("top-1",), ("features", "logits")])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_contract_is_repeated_as_far_as_it_goes(outputs, precision, head, source):
    path = head.with_name("other.onnx")
    options = featx.ExportOptions(input="crop", outputs=outputs, precision=precision)
    featx.export_onnx(head, path, options)
    again = check(path, source, CheckOptions(max_images=3)).repeated
    assert again is not None
    assert again.holds
    assert (again.max_difference is None) == (outputs == ("top-1",))
    assert again.num_scored == 3


def test_features_alone_cannot_be_compared(head, source):
    path = head.with_name("other.onnx")
    featx.export_onnx(head, path, featx.ExportOptions(outputs=("features",)))
    with pytest.raises(ConfigError, match="neither logits nor probabilities"):
        check(path, source)


def test_a_model_without_a_proof(head, source):
    path = head.with_name("other.onnx")
    featx.export_onnx(head, path, featx.ExportOptions(verify=False))
    assert "none: exported with --no-verify" in command(path)[1]
    with pytest.raises(ConfigError, match="exported without a proof"):
        check(path, source)


def test_a_proof_of_an_earlier_featx(model, source):
    def forget(details: dict[str, Any]) -> None:
        old = ("num_images", "max_difference", "max_resized_difference", "bound",
               "top1_agreement", "max_batch_difference", "batch_sizes")  # fmt: skip
        details["proof"] = {name: details["proof"][name] for name in old}
        for name in ("contract", "precision"):
            del details[name]

    with_details(model, forget)
    assert command(model)[0] == 0
    with pytest.raises(ConfigError, match="comes from an earlier featx"):
        check(model, source)


WITNESSES: list[Callable[[dict[str, Any]], object]] = [
    lambda p: p.update(witnesses=3), lambda p: p.update(witnesses=[]),
    lambda p: p["witnesses"][0].update(digest="zz"), lambda p: p["witnesses"][0].pop("logits"),
    lambda p: p["witnesses"][0].update(logits=[1]), lambda p: p["witnesses"][0].update(logits="x"),
    lambda p: p.update(witnesses=[None]),
]  # fmt: skip


def test_witnesses_that_were_damaged(model, source):
    whole = model.read_bytes()
    for damage in WITNESSES:
        model.write_bytes(whole)
        with_details(model, lambda details, damage=damage: damage(details["proof"]))  # type: ignore[misc]
        with pytest.raises(ArtifactInvalid, match=r"header is damaged: details\.proof\.witnesses"):
            check(model, source)


DETAILS: list[Callable[[dict[str, Any]], object]] = [
    lambda d: d.update(proof="proven"), lambda d: d.update(proof=[]), lambda d: d.update(proof={}),
    lambda d: d["proof"].update(bound="wide"), lambda d: d["proof"].update(num_images=None),
    lambda d: d["proof"].update(hard=[1]), lambda d: d["proof"].update(hard={"tiny": "x"}),
    lambda d: d["proof"].update(accuracy=1), lambda d: d["proof"].update(accuracy={"file": 1}),
    lambda d: d["proof"].update(date=3), lambda d: d.update(precision=[1]),
    lambda d: d.update(opset={}), lambda d: d.update(contract=[]),
    lambda d: d["contract"].update(input="crop"), lambda d: d["contract"].update(outputs=["top-9"]),
]  # fmt: skip


def test_a_header_that_no_export_writes_is_refused_when_opened(model):
    whole = model.read_bytes()
    for damage in DETAILS:
        model.write_bytes(whole)
        with_details(model, damage)
        with pytest.raises(ArtifactInvalid, match=r"header is damaged|other inputs or outputs"):
            open_classifier(model)
    code, output = command(model)
    assert code == 1
    assert "header is damaged" in output


@pytest.mark.parametrize("outputs", [("logits",), ("top-1",)])
def test_one_image_of_another_class_is_enough_to_fail(head, source, outputs):
    model = head.with_name("m.onnx")
    featx.export_onnx(head, model, featx.ExportOptions(outputs=outputs, atol=1000))

    def swap(details: dict[str, Any]) -> None:
        details["proof"]["witnesses"][3]["logits"].reverse()
        details["proof"]["bound"] = 1e-3

    with_details(model, swap)
    again = check(model, source).repeated
    assert again is not None
    assert again.num_agreeing == again.num_found - 1
    assert (again.max_difference is None) == (outputs == ("top-1",))
    assert not replace(again, max_difference=0.0).holds
    code, output = command(model, source)
    assert code == 1
    assert "DOES NOT HOLD: same class in 11 of 12 images" in output


def test_a_head_is_not_compared_with_images(head, source):
    with pytest.raises(ConfigError, match="compared with a feature file"):
        check(head, source)


def test_random_images_do_not_make_it_fail(model, source):
    """Images that came after the export are scored, not compared."""
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(source / "ants" / "new.png")
    again = check(model, source).repeated
    assert again is not None
    assert again.holds
