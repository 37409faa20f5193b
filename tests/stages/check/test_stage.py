"""featx check: intact or not, fresh or stale, and why."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from commands import featx_cli
from PIL import Image

import featx
from featx.errors import ArtifactIncomplete, ArtifactInvalid, ConfigError, SourceError
from featx.images.sources.sample import stamp_of
from featx.stages.check import CheckOptions, check


@pytest.fixture
def source(photos: Callable[..., Path]) -> Path:
    return photos({"ants": 4, "bees": 4})


@pytest.fixture
def features(source: Path, tmp_path: Path) -> Path:
    """A feature file of eight images; no process of its own verifies it."""
    path = tmp_path / "f.h5"
    featx.extract(source, path, featx.ExtractOptions(backbone="tiny", val_fraction=0.4))
    return path


def command(*arguments: object) -> tuple[int, str]:
    result = featx_cli("check", *arguments)
    return result.exit_code, result.output


def repaint(path: Path) -> None:
    Image.new("RGB", (30, 30), (1, 200, 3)).save(path)


class TestFresh:
    def test_as_it_was(self, features, source):
        report = check(features)
        assert report.is_fresh
        assert (report.kind, report.source, report.num_images) == ("features", str(source), 8)
        code, output = command(features)
        assert code == 0
        assert "fresh" in output
        assert "8 images" in output

    def test_the_settings_it_was_made_with(self, features, source):
        options = CheckOptions(backbone="tiny", weights="default", image_size=32, crop="center")
        assert check(features, source, options).is_fresh

    def test_a_touched_image_is_fresh_and_counted(self, features, source):
        os.utime(source / "ants" / "000.jpg", (1, 1))
        report = check(features)
        assert report.is_fresh
        assert report.num_touched == 1
        assert "1 image: other times" in command(features)[1]


class TestStale:
    def test_each_kind_of_change_is_counted(self, features, source):
        repaint(source / "ants" / "000.jpg")
        (source / "ants" / "001.jpg").unlink()
        shutil.copy(source / "bees" / "000.jpg", source / "bees" / "new.jpg")
        shutil.copy(source / "bees" / "000.jpg", source / "bees" / "newer.jpg")
        report = check(features)
        assert not report.is_fresh
        assert (report.num_new, report.num_changed, report.num_removed) == (2, 1, 1)
        code, output = command(features)
        assert code == 1
        assert "2 new, 1 changed, 1 removed" in output

    def test_what_it_says_is_what_extract_does(self, features, source):
        repaint(source / "ants" / "000.jpg")
        (source / "ants" / "001.jpg").unlink()
        shutil.copy(source / "bees" / "000.jpg", source / "bees" / "new.jpg")
        found = check(features)
        done = featx.extract(
            source, features, featx.ExtractOptions(backbone="tiny", val_fraction=0.4)
        )
        for name in ("num_new", "num_changed", "num_removed"):
            assert getattr(found, name) == getattr(done, name) == 1
        assert check(features).is_fresh

    def test_a_change_that_keeps_size_and_time(self, features, source):
        path = source / "ants" / "002.png"
        before = path.stat()
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert check(features).num_changed == 1

    def test_a_change_that_no_time_shows(self, features, source, monkeypatch):
        path = source / "ants" / "002.png"
        stamps = {str(each): stamp_of(str(each)) for each in source.rglob("*.*")}
        monkeypatch.setattr("featx.images.sources.sample.stamp_of", stamps.get)
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
        assert check(features).is_fresh
        assert check(features, options=CheckOptions(verify_content=True)).num_changed == 1

    def test_relabelled(self, source, tmp_path):
        table, features = tmp_path / "t.csv", tmp_path / "t.h5"
        names = [f"{path.parent.name}/{path.name}" for path in sorted(source.glob("*/*"))]
        rows = [f"photos/{name},{name.partition('/')[0]},train" for name in names]
        table.write_text("\n".join(["path,label,split", *rows]))
        featx.extract(table, features, featx.ExtractOptions(backbone="tiny"))
        rows[0] = rows[0].replace(",ants,", ",bees,")
        rows[1] = rows[1].replace(",train", ",test")
        table.write_text("\n".join(["path,label,split", *rows]))
        assert check(features).num_relabelled == 2

    def test_the_splits_that_featx_chose_are_not_compared(self, features, source):
        options = featx.ExtractOptions(backbone="tiny", val_fraction=0.25, resplit=True)
        featx.extract(source, features, options)
        assert check(features).is_fresh
        path = next((source / "ants").iterdir())
        path.rename(source / "bees" / f"was an ant {path.name}")
        found = check(features)
        assert (found.num_new, found.num_removed, found.num_relabelled) == (1, 1, 0)

    @pytest.mark.parametrize(
        ("option", "value", "line"),
        [
            ("backbone", "resnet18", "backbone: expected 'resnet18', found 'tiny'"),
            ("layer", "stage1", "layer: expected 'stage1', found 'flatten'"),
            ("image_size", 64, "image_size: expected 64, found 32"),
            ("resize", 40, "resize: expected 40, found 32"),
            ("crop", "none", "crop: expected 'none', found 'center'"),
            ("dtype", "float16", "dtype: expected 'float16', found 'float32'"),
            ("weights", "none", "weights: expected 'none', found 'bundled'"),
        ],
    )
    def test_the_setting_that_differs_is_named(self, features, option, value, line):
        report = check(features, options=CheckOptions(**{option: value}))
        assert report.settings == (line,)
        assert not report.is_fresh

    def test_weights_that_changed_in_their_file(self, source, tmp_path):
        from featx.backbones.spec import BUNDLED_WEIGHTS

        weights, features = tmp_path / "mine.safetensors", tmp_path / "f.h5"
        shutil.copy(BUNDLED_WEIGHTS, weights)
        featx.extract(source, features, featx.ExtractOptions(backbone="tiny", weights=str(weights)))
        assert check(features).is_fresh
        weights.write_bytes(weights.read_bytes() + b" ")
        assert "weights_sha256: expected" in check(features).settings[0]
        weights.unlink()
        assert "does not exist" in check(features).settings[0]


class TestNotIntact:
    def test_a_flipped_bit(self, features):
        with h5py.File(features) as file:
            offset = file["features"].id.get_chunk_info(0).byte_offset
        content = bytearray(features.read_bytes())
        content[offset + 100] ^= 4
        features.write_bytes(content)
        with pytest.raises(ArtifactInvalid):
            check(features)
        code, output = command(features)
        assert code == 1
        assert output.startswith("Error: ")

    def test_an_extraction_that_has_not_finished(self, source, tmp_path):
        def stop(done: int, _total: int) -> None:
            if done >= 4:
                raise KeyboardInterrupt

        options = featx.ExtractOptions(backbone="tiny", batch_size=2)
        with pytest.raises(KeyboardInterrupt):
            featx.extract(source, tmp_path / "f.h5", options, progress=stop)
        with pytest.raises(ArtifactIncomplete, match="4 of 8 images"):
            check(tmp_path / "f.h5")
        with pytest.raises(ArtifactIncomplete, match="journal of an extraction"):
            check(tmp_path / "f.h5.partial")

    def test_a_file_that_takes_longer_than_allowed(self, features):
        with pytest.raises(ArtifactInvalid, match=r"0\.001 seconds"):
            check(features, options=CheckOptions(seconds=0.001))

    def test_none_of_ours(self, tmp_path):
        (tmp_path / "x.h5").write_text("hello")
        with h5py.File(tmp_path / "y.h5", "w") as file:
            file["features"] = [1.0]
        for name in ("x.h5", "y.h5"):
            code, output = command(tmp_path / name)
            assert (code, output.count("\n")) == (1, 1), output


def test_heads_and_models_are_read_without_a_source(features, tmp_path):
    head, model = tmp_path / "h.safetensors", tmp_path / "m.onnx"
    featx.train_head(features, head)
    featx.export_onnx(head, model)
    for path, kind, beside in ((head, "head", str(features)), (model, "classifier", None)):
        report = check(path)
        assert (report.kind, report.source, report.is_fresh) == (kind, beside, True)
    with pytest.raises(ConfigError, match="compared with a feature file"):
        check(head, "digits:")
    content = bytearray(head.read_bytes())
    content[-3] ^= 1
    head.write_bytes(content)
    with pytest.raises(ArtifactInvalid):
        check(head)


def test_a_source_that_is_gone_is_named(features, source):
    shutil.rmtree(source)
    with pytest.raises(SourceError, match="does not exist"):
        check(features)


def test_the_report_for_machines(features):
    code, output = command(features, "--json", "--backbone", "resnet18")
    report = json.loads(output)
    assert code == 1
    assert report["is_fresh"] is False
    assert report["path"] == str(features)
    assert report["settings"] == ["backbone: expected 'resnet18', found 'tiny'"]
