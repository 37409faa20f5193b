"""JPEGs decoded scaled: the same way in every stage, and known to all files."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from featx.backbones.graph_cache import read_graph
from featx.backbones.spec import BackboneRequest, BackboneSpec
from featx.classifier.proof import Proof
from featx.classifier.session import open_classifier
from featx.cli import main
from featx.errors import ArtifactMismatch, ConfigError
from featx.extraction.options import ExtractOptions
from featx.features.file import FeatureFile, open_features
from featx.heads.head import open_head
from featx.images.decode import decode_image
from featx.stages.check import CheckOptions, check
from featx.stages.evaluate import evaluate
from featx.stages.export import ExportOptions, export_onnx
from featx.stages.extract import extract
from featx.stages.predict import Predictor
from featx.stages.train import train_head

TINY = ExtractOptions(backbone="tiny")
SCALED = replace(TINY, decode="scaled")


@dataclass(frozen=True)
class Files:
    """A source of large JPEGs, and what was made of it with scaled decoding."""

    source: Path
    features: Path
    head: Path
    model: Path
    proof: Proof | None

    @property
    def cache(self) -> FeatureFile:
        return open_features(self.features)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("scaled")
    rng = np.random.default_rng(0)
    for number in range(20):
        path = folder / "photos" / ("ants", "bees")[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 120, (12, 14, 3)) + 100 * (number % 2)
        image = Image.fromarray(coarse.astype(np.uint8)).resize((420, 301 + number))
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8
        image.save(path, quality=90, exif=exif)
    made = [folder / name for name in ("f.h5", "h.safetensors", "m.onnx")]
    extract(folder / "photos", made[0], SCALED)
    train_head(made[0], made[1])
    report = export_onnx(made[1], made[2])
    return Files(folder / "photos", *made, report.proof)


def test_the_mode_is_in_every_file(files):
    for header in (
        files.cache.header,
        open_head(files.head).header,
        open_classifier(files.model).header,
    ):
        assert BackboneSpec.from_dict(header.spec).preprocess.decode == "scaled"


def test_features_are_those_of_scaled_pixels(files, tmp_path):
    """The pixels written out as PNGs, which are decoded in full, give the same features."""
    spec = BackboneSpec.from_dict(files.cache.header.spec).preprocess
    for sample_id in files.cache.sample_ids:
        content = (files.source / sample_id).read_bytes()
        pixels = decode_image(content, sample_id=sample_id, preprocess=spec)
        assert pixels.size < 420 * 301 * 3 / 15
        path = (tmp_path / "png" / sample_id).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    extract(tmp_path / "png", tmp_path / "f.h5", TINY)
    np.testing.assert_array_equal(open_features(tmp_path / "f.h5").features, files.cache.features)


def test_predict_and_evaluate_decode_as_extract_did(files):
    head, cache = open_head(files.head), files.cache
    expected = head.logits(cache.features)
    paths = [files.source / sample_id for sample_id in cache.sample_ids]
    predictor = Predictor(files.model)
    for images in (paths, [path.read_bytes() for path in paths]):
        found = predictor.predict(images, top_k=2)
        labels = [prediction.label for prediction in found]
        assert labels == [head.classes[i] for i in expected.argmax(axis=1)]
        shares = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(
            [prediction.probability for prediction in found], shares.max(axis=1), atol=0.005
        )
    scores = evaluate(files.model, files.source).metrics
    own = head.header.details["metrics"]
    assert {split: s.top1 for split, s in scores.items()} == {s: own[s]["top1"] for s in scores}


def test_the_proof_measures_both_ways_to_decode(files):
    proof = files.proof
    assert proof is not None
    assert proof.max_difference <= proof.bound
    assert proof.max_full_difference is not None
    assert proof.max_full_difference > proof.max_resized_difference
    assert proof.full_top1_agreement is not None
    assert 0 <= proof.full_top1_agreement <= 1
    kept = open_classifier(files.model).header.details["proof"]
    assert kept["max_full_difference"] == pytest.approx(proof.max_full_difference, rel=5e-3)


def test_features_of_the_other_mode_do_not_fit(files, tmp_path):
    extract(files.source, tmp_path / "f.h5", TINY)
    with pytest.raises(ArtifactMismatch, match=r"decode"):
        export_onnx(files.head, tmp_path / "m.onnx", ExportOptions(features=tmp_path / "f.h5"))
    with pytest.raises(ArtifactMismatch, match=r"decode: expected 'scaled'"):
        extract(files.source, tmp_path / "f.h5", SCALED)


def test_the_same_again_does_nothing(files):
    report = extract(files.source, files.features, SCALED)
    assert report.is_unchanged
    assert report.engine is None


def test_check_knows_the_mode(files):
    assert check(files.features).is_fresh
    assert check(files.features, None, CheckOptions(decode="scaled")).is_fresh
    (line,) = check(files.features, None, CheckOptions(decode="full")).settings
    assert line == "decode: expected 'full', found 'scaled'"


def test_a_request_of_before_is_one_for_full_decoding():
    request = BackboneRequest("tiny")
    assert "decode" not in request.to_dict()
    assert BackboneRequest(**request.to_dict()).decode == "full"
    assert BackboneRequest("tiny", decode="scaled").to_dict()["decode"] == "scaled"


def test_both_modes_run_the_same_graph(files):
    """So ``tiny`` has its own at hand either way."""
    spec = BackboneSpec.from_dict(files.cache.header.spec)
    full = replace(spec, preprocess=replace(spec.preprocess, decode="full"))
    assert spec.fingerprint != full.fingerprint
    assert read_graph(spec) == read_graph(full) is not None


def test_another_mode_is_refused():
    with pytest.raises(ConfigError, match="decode must be one of full, scaled; got 'half'"):
        ExtractOptions(decode="half")  # type: ignore[arg-type]


def test_on_the_command_line(files, tmp_path):
    run, out = CliRunner(), str(tmp_path / "f.h5")
    source = str(files.source)
    result = run.invoke(main, ["extract", source, "-b", "tiny", "--decode", "scaled", "-o", out])
    assert result.exit_code == 0, result.output
    assert "JPEGs decoded scaled" in run.invoke(main, ["info", out]).output
    assert "JPEGs decoded scaled" not in run.invoke(main, ["info", _full(files, tmp_path)]).output
    stale = run.invoke(main, ["check", out, "--decode", "full"])
    assert stale.exit_code == 1
    assert "decode: expected 'full', found 'scaled'" in stale.output
    model = str(tmp_path / "m.onnx")
    exported = run.invoke(main, ["export", str(files.head), "--onnx", model])
    assert exported.exit_code == 0, exported.output
    assert "full decode" in exported.output
    assert "full decode" in run.invoke(main, ["info", model]).output


def _full(files: Files, folder: Path) -> str:
    extract(files.source, folder / "full.h5", TINY)
    return str(folder / "full.h5")


def test_pixels_given_as_they_are_are_not_scaled(files):
    """A PIL image or array is what its caller decoded, so its answer is that of full decoding."""
    path = files.source / files.cache.sample_ids[0]
    predictor = Predictor(files.model)
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        size = image.size
        opened = predictor.predict([image])
        assert image.size == size
    full = predictor.predict([decode_image(path.read_bytes(), sample_id="a")])
    assert opened[0].top == full[0].top
