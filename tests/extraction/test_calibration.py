"""Precisions from extraction to prediction: what was calibrated stays, what differs is told."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from featx.artifact import require_same_features
from featx.backbones.graph_cache import graph_path, read_graph
from featx.backbones.int8 import cosine
from featx.backbones.spec import BackboneSpec
from featx.classifier.session import open_classifier
from featx.errors import ArtifactMismatch, BackboneError, ConfigError, SourceError
from featx.extraction import backbone as backbone_module
from featx.extraction.backbone import LazyBackbone, calibration_pixels
from featx.extraction.options import ExtractOptions
from featx.extraction.resume import Settings
from featx.features.file import open_features
from featx.images.preprocess import PreprocessSpec
from featx.images.sources import open_source
from featx.stages.export import ExportOptions, export_onnx
from featx.stages.extract import extract
from featx.stages.train import train_head
from featx.training.options import TrainOptions
from tests.extraction.test_backbone import HEAVY, modules_after

INT8 = ExtractOptions(backbone="tiny", precision="int8")
GEOMETRY = PreprocessSpec(image_size=8, resize=8, mean=(0.5,) * 3, std=(0.5,) * 3)  # type: ignore[arg-type]


def spec_of(path: Path) -> BackboneSpec:
    return BackboneSpec.from_dict(open_features(path).header.spec)


@pytest.fixture
def never_again(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after which nothing may be calibrated."""

    def forbid() -> None:
        def never(*_: object) -> None:
            raise AssertionError("calibrated again")

        monkeypatch.setattr(LazyBackbone, "calibrated", never)

    return forbid


class TestInt8:
    def test_features_are_near_those_of_fp32(self, photos, tmp_path):
        source = photos()
        report = extract(source, tmp_path / "int8.h5", INT8)
        plain = extract(source, tmp_path / "fp32.h5", ExtractOptions(backbone="tiny"))
        found, expected = (open_features(r.path).features[:] for r in (report, plain))
        cosines = cosine(found, expected)
        assert cosines.mean() >= 0.999
        assert cosines.min() >= 0.99
        assert report.spec.fingerprint != plain.spec.fingerprint
        assert report.spec.in_float32 == plain.spec
        assert "calibration" not in open_features(plain.path).header.spec
        assert spec_of(report.path).calibration == report.spec.calibration is not None

    def test_the_same_source_gives_the_same_file(self, photos, tmp_path, cache):
        source = photos()
        first = extract(source, tmp_path / "first.h5", INT8).path.read_bytes()
        assert extract(source, tmp_path / "second.h5", INT8).path.read_bytes() == first
        shutil.rmtree(cache)
        assert extract(source, tmp_path / "third.h5", INT8).path.read_bytes() == first

    def test_a_grown_source_keeps_the_ranges(self, photos, tmp_path, cache, never_again):
        source, output = photos(), tmp_path / "f.h5"
        spec = extract(source, output, INT8).spec
        before = open_features(output)
        rows = dict(zip(before.sample_ids, before.features[:], strict=True))
        never_again()
        photos({"ants": 9, "bees": 6}, seed=5)
        shutil.rmtree(cache)  # the graph is made again from the table in the file
        report = extract(source, output, INT8)
        assert (report.num_extracted + report.num_duplicates > 0, report.spec) == (True, spec)
        after = open_features(output)
        graph = read_graph(spec)
        assert graph is not None
        unchanged = [name for name in after.sample_ids if name in rows]
        assert unchanged
        assert len(after) == 15

    def test_an_interrupted_run_keeps_the_ranges(self, photos, tmp_path, never_again):
        def stop(done: int, total: int) -> None:
            if done >= 4:
                raise KeyboardInterrupt

        source = photos()
        options = ExtractOptions(backbone="tiny", precision="int8", batch_size=4, workers=1)
        whole = extract(source, tmp_path / "whole.h5", options).path.read_bytes()
        with pytest.raises(KeyboardInterrupt):
            extract(source, tmp_path / "f.h5", options, progress=stop)
        photo = next((source / "bees").iterdir())
        copy = photo.read_bytes()
        never_again()
        photo.write_bytes(copy)
        assert extract(source, tmp_path / "f.h5", options).num_resumed >= 4
        assert (tmp_path / "f.h5").read_bytes()[:8] == whole[:8]
        assert spec_of(tmp_path / "f.h5") == spec_of(tmp_path / "whole.h5")
        assert (
            open_features(tmp_path / "f.h5").features[:]
            == open_features(tmp_path / "whole.h5").features[:]
        ).all()

    def test_another_source_is_calibrated_anew(self, photos, tmp_path):
        output = tmp_path / "f.h5"
        first = extract(photos(name="one"), output, INT8).spec
        other = photos({"cats": 5, "dogs": 5}, name="other", seed=3)
        with pytest.raises(ArtifactMismatch, match="other settings: source: ") as caught:
            extract(other, output, INT8)
        assert "calibration" not in str(caught.value)
        replaced = ExtractOptions(backbone="tiny", precision="int8", overwrite=True)
        assert extract(other, output, replaced).spec.calibration != first.calibration

    def test_a_kept_graph_is_run_without_torch(self, photos, tmp_path, cache):
        source, output = photos(), tmp_path / "f.h5"
        spec = extract(source, output, INT8).spec
        assert graph_path(spec).is_file()
        photos({"ants": 9, "bees": 6}, seed=5)
        command = ("extract", str(source), "-b", "tiny", "--precision", "int8", "-q")
        assert not modules_after(*command, "-o", str(output)) & HEAVY

    def test_what_loses_too_much_is_refused(self, photos, tmp_path, monkeypatch):
        monkeypatch.setattr("featx.backbones.int8.MIN_MEAN_COSINE", 1.0)
        with pytest.raises(BackboneError, match="tiny loses too much in int8"):
            extract(photos(), tmp_path / "f.h5", INT8)
        assert not (tmp_path / "f.h5").exists()

    def test_what_was_validated_is_what_runs(self, tmp_path):
        report = extract("digits:", tmp_path / "f.h5", INT8)
        head = train_head(tmp_path / "f.h5", tmp_path / "h.safetensors", TrainOptions())
        exported = export_onnx(head.path, tmp_path / "m.onnx", ExportOptions())
        assert exported.proof is not None
        nodes = onnx.load(exported.path).graph.node
        assert sum(node.op_type == "QuantizeLinear" for node in nodes) > 5
        assert exported.header.spec == report.spec.to_dict()
        images, cache = open_source("digits:"), open_features(tmp_path / "f.h5")
        batch = np.stack([images.read(number) for number in range(0, 1797, 40)])
        logits = open_classifier(exported.path).run(batch)["logits"]
        mine = cosine(logits, _logits(head.path, cache.features[::40]))
        assert mine.min() > 0.99


def _logits(path: Path, features: np.ndarray) -> np.ndarray:
    from featx.heads.head import open_head

    return open_head(path).logits(features)


class TestMismatches:
    def test_another_precision_is_another_file(self, photos, tmp_path):
        source, output = photos(), tmp_path / "f.h5"
        extract(source, output, ExtractOptions(backbone="tiny"))
        with pytest.raises(ArtifactMismatch, match="precision: expected 'bf16', found 'fp32'"):
            extract(source, output, ExtractOptions(backbone="tiny", precision="bf16"))
        with pytest.raises(ArtifactMismatch, match=r"precision: expected 'int8', found 'fp32'\."):
            extract(source, output, INT8)

    def test_a_default_is_named_and_ranges_are_in_few_words(self, photos, tmp_path):
        source, output = photos(), tmp_path / "f.h5"
        extract(source, output, replace(INT8, decode="scaled"))
        with pytest.raises(ArtifactMismatch) as caught:
            extract(source, output, ExtractOptions(precision="fp32", decode="full"))
        assert "precision: expected 'fp32', found 'int8'" in str(caught.value)
        assert "preprocess.decode: expected 'full', found 'scaled'" in str(caught.value)
        found = Settings.of_file(open_features(output).header, path=output)
        assert found.spec.calibration is not None
        ranges = tuple((name, 0.0, 1.0) for name, *_ in found.spec.calibration.ranges)
        other = replace(found.spec.calibration, ranges=ranges)
        (line,) = replace(found, spec=replace(found.spec, calibration=other)).differences(found)
        assert re.fullmatch(r"calibration: expected 'ranges \w{16}', found 'ranges \w{16}'", line)

    def test_a_head_of_other_ranges_hears_of_a_few(self, photos, tmp_path):
        one = extract(photos(name="one"), tmp_path / "one.h5", INT8).path
        other = extract(photos(name="other", seed=4), tmp_path / "other.h5", INT8).path
        headers = [open_features(path).header for path in (one, other)]
        with pytest.raises(ArtifactMismatch, match=r"calibration\.ranges\.relu: exp") as caught:
            require_same_features(*headers, path=other)
        assert len(str(caught.value)) < 1500

    @pytest.mark.parametrize("change", [{"scheme": 99}, {"ranges": [1]}])
    def test_a_table_from_elsewhere_is_refused(self, change, photos):
        spec = LazyBackbone(ExtractOptions(backbone="tiny").resolved()).spec().to_dict()
        table = {"scheme": 1, "ranges": {"relu": [0, 1]}} | change
        with pytest.raises(BackboneError):
            BackboneSpec.from_dict(spec | {"precision": "int8", "calibration": table})

    @pytest.mark.parametrize(
        "change",
        [
            {"precision": "int8"},
            {"precision": "int4"},
            {"calibration": {"scheme": 1, "ranges": {}}},
        ],
    )
    def test_precision_and_table_go_together(self, change):
        spec = LazyBackbone(ExtractOptions(backbone="tiny").resolved()).spec().to_dict()
        with pytest.raises(BackboneError, match=r"precision|int8"):
            BackboneSpec.from_dict(json.loads(json.dumps(spec | change)))


def test_bf16_runs_with_torch(photos, tmp_path):
    source = photos()
    report = extract(source, tmp_path / "h.h5", ExtractOptions(backbone="tiny", precision="bf16"))
    plain = extract(source, tmp_path / "f.h5", ExtractOptions(backbone="tiny"))
    assert (report.engine, report.spec.precision) == ("torch", "bf16")
    found, expected = (open_features(r.path).features[:] for r in (report, plain))
    assert 0.999 <= cosine(found, expected).min() < 1


def test_several_devices_give_the_same_rows(photos, tmp_path, monkeypatch):
    source = photos({"ants": 7, "bees": 6})
    options = ExtractOptions(backbone="tiny", engine="torch", batch_size=3, workers=3)
    one = extract(source, tmp_path / "one.h5", options)
    monkeypatch.setattr(backbone_module, "resolve_devices", lambda device: ["cpu", "cpu"])
    two = extract(source, tmp_path / "two.h5", options)
    assert (one.device, two.device, two.engine) == ("cpu", "cpu, cpu", "torch")
    first, second = open_features(one.path), open_features(two.path)
    assert first.sample_ids == second.sample_ids
    np.testing.assert_allclose(first.features[:], second.features[:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"precision": "int4"}, "precision must be one of fp32, tf32, bf16, fp16, int8"),
        ({"precision": "int8", "engine": "torch"}, "int8 runs with ONNX Runtime"),
        ({"precision": "fp16", "device": "cpu"}, "fp16 needs a CUDA GPU"),
    ],
)
def test_impossible_options_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        ExtractOptions(**settings)


class TestTheImagesToCalibrateWith:
    def pixels(self, source: Path) -> np.ndarray:
        return calibration_pixels(open_source(str(source)), GEOMETRY, max_pixels=10**6)

    def test_they_are_spread_over_the_training_split(self, photos):
        source = photos({"train/ants": 100, "train/bees": 100, "val/ants": 4, "val/bees": 4})
        pixels = self.pixels(source)
        assert pixels.shape == (128, 8, 8, 3)
        assert (pixels == self.pixels(source)).all()
        for path in (source / "val").rglob("*.*"):
            path.write_bytes(b"no image")
        assert (pixels == self.pixels(source)).all()

    def test_a_source_without_a_training_split_gives_all(self, photos):
        assert len(self.pixels(photos({"test/ants": 4, "test/bees": 3}))) == 7

    def test_bad_ones_are_left_out(self, photos):
        source = photos({"ants": 4, "bees": 4})
        (source / "ants" / "000.jpg").write_bytes(b"no image")
        assert len(self.pixels(source)) == 7

    def test_none_at_all_is_an_error(self, photos):
        source = photos({"ants": 2, "bees": 1})
        for path in source.rglob("*.*"):
            path.write_bytes(b"no image")
        with pytest.raises(SourceError, match="none of the 3 images to calibrate int8 with can be"):
            self.pixels(source)


def test_int8_runs_in_as_many_threads_as_there_are(photos, tmp_path):
    source = photos({"ants": 9, "bees": 9})
    found = [
        extract(
            source,
            tmp_path / f"{workers}.h5",
            ExtractOptions(backbone="tiny", precision="int8", workers=workers),
        ).path.read_bytes()
        for workers in (1, 3)
    ]
    assert found[0] == found[1]
