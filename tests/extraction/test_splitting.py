"""Splits of whole extractions: by content, kept as the data grows, chosen anew when asked to."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featx
from featx.errors import ConfigError
from featx.extraction.options import ExtractOptions
from featx.features.file import FeatureFile, open_features
from featx.features.splits import VAL
from featx.stages.extract import extract

TINY = ExtractOptions(backbone="tiny")


def paint(path: Path, seed: int) -> Path:
    """Write a small image that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of 15 images."""
    for seed in range(30):
        paint(tmp_path / "photos" / "ab"[seed // 15] / f"{seed}.png", seed)
    return tmp_path / "photos"


@pytest.fixture
def update(tmp_path: Path) -> Callable[..., FeatureFile]:
    """A function that extracts a source into one file, and returns it."""

    def run(source: Path, **options: object) -> FeatureFile:
        extract(source, tmp_path / "f.h5", ExtractOptions(backbone="tiny", **options))  # type: ignore[arg-type]
        return open_features(tmp_path / "f.h5")

    return run


def by_content(file: FeatureFile) -> dict[bytes, int]:
    splits: dict[bytes, int] = {}
    for digest, split in zip(file.digests, file.splits.tolist(), strict=True):
        assert splits.setdefault(digest.tobytes(), split) == split  # copies share theirs
    return splits


def held_out(file: FeatureFile) -> dict[str, int]:
    """Return the number of validation images of each class."""
    labels = file.labels[file.rows("val")]
    return {name: int((labels == number).sum()) for number, name in enumerate(file.classes)}


class TestFreshFile:
    def test_names_order_and_batches_do_not_matter(self, root, tmp_path, update):
        file = update(root)
        assert held_out(file) == {"a": 3, "b": 3}
        other = tmp_path / "renamed"
        for number, path in enumerate(sorted(root.glob("*/*"), key=lambda path: path.name)):
            name = other / path.parent.name / f"{997 * number % 100}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, name)
        options = ExtractOptions(backbone="tiny", batch_size=4, workers=1)
        extract(other, tmp_path / "g.h5", options)
        assert by_content(open_features(tmp_path / "g.h5")) == by_content(file)

    def test_copies_in_another_class_share_their_split(self, root, update):
        for path in sorted((root / "a").iterdir()):
            shutil.copy(path, root / "b" / f"copy of {path.name}")
        splits = by_content(update(root))
        assert 0 < sum(split == VAL for split in splits.values()) < 15

    def test_arrays_have_contents_too(self, tmp_path):
        extract("digits:", tmp_path / "f.h5", TINY)
        file = open_features(tmp_path / "f.h5")
        counts = np.bincount(file.labels)
        by_content(file)
        assert list(held_out(file).values()) == np.rint(0.2 * counts).tolist()

    def test_groups_stay_together(self, root, update):
        names = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*"))
        rows = [f"{name},{name[0]},{'ab'.index(name[0])}-{i % 5}" for i, name in enumerate(names)]
        (root / "table.csv").write_text("\n".join(["path,label,group", *rows]))
        file = update(root / "table.csv")
        groups = np.array([row.rpartition(",")[2] for row in rows])
        assert all(len(set(file.splits[groups == group])) == 1 for group in set(groups))
        assert held_out(file) == {"a": 3, "b": 3}

    def test_a_group_in_two_splits_of_the_source_is_named(self, root, update, caplog):
        rows = ["a/0.png,a,train,pat 1", "a/1.png,a,test,pat 1", "b/15.png,b,train,pat 2"]
        (root / "table.csv").write_text("\n".join(["path,label,split,group", *rows]))
        caplog.set_level(logging.WARNING)
        update(root / "table.csv")
        assert "1 group has images in several splits: 'pat 1'" in caplog.text


class TestGrowth:
    def test_images_keep_their_split_and_classes_their_share(self, root, update):
        before = by_content(update(root))
        for seed in range(100, 130):
            paint(root / "a" / f"{seed}.png", seed)
        file = update(root)
        assert before.items() <= by_content(file).items()
        assert held_out(file) == {"a": 9, "b": 3}

    def test_relabelled_moved_and_renamed_images_keep_theirs(self, root, tmp_path, update):
        before = by_content(update(root))
        for path in sorted((root / "a").iterdir())[::2]:
            path.rename(root / "b" / f"was {path.name}")
        assert by_content(update(root)) == before
        shutil.copytree(root, tmp_path / "elsewhere")
        assert by_content(update(tmp_path / "elsewhere", verify_content=True)) == before

    def test_another_backbone_in_the_same_file_keeps_them(self, root, update):
        before = by_content(update(root, val_fraction=0.3))
        paint(root / "a" / "new.png", 1000)
        update(root)
        file = update(root, dtype="float16", overwrite=True)
        assert before.items() <= by_content(file).items()
        assert file.header.details["val_fraction"] == 0.3

    def test_an_unchanged_source_is_up_to_date(self, root, tmp_path):
        output = tmp_path / "f.h5"
        extract(root, output, ExtractOptions(backbone="tiny", val_fraction=0.3))
        paint(root / "a" / "new.png", 1000)
        extract(root, output, TINY)
        content = output.read_bytes()
        assert extract(root, output, TINY).is_unchanged
        assert output.read_bytes() == content
        assert featx.check(output).is_fresh

    def test_the_sources_own_split_comes_first(self, root, update):
        update(root)
        for path in sorted(root.glob("*/*")):
            split = "test" if int(path.stem) % 2 else "train"
            (root / split / path.parent.name).mkdir(parents=True, exist_ok=True)
            path.rename(root / split / path.parent.name / path.name)
        for name in "ab":
            (root / name).rmdir()
        file = update(root)
        assert len(file.rows("test")) == 15
        assert len(file.rows("val")) > 0
        moved = next((root / "test" / "a").iterdir())
        (root / "val" / "a").mkdir(parents=True)
        moved.rename(root / "val" / "a" / moved.name)
        assert len(update(root).rows("val")) == 1

    def test_without_validation_images_of_its_own_a_source_gets_some(self, root, tmp_path, update):
        source = tmp_path / "all"
        shutil.copytree(root, source / "train")
        for seed in range(100, 104):
            paint(source / "val" / "ab"[seed % 2] / f"{seed}.png", seed)
        assert len(update(source).rows("val")) == 4
        (source / "val/a/100.png").rename(source / "train/a/100.png")
        shutil.rmtree(source / "val")
        file = update(source)
        assert held_out(file) == {"a": 3, "b": 3}
        assert "train/a/100.png" in [file.sample_ids[row] for row in file.rows("val")]

    def test_a_class_left_without_training_images_is_named(self, root, update, caplog):
        file = update(root)
        for row in file.rows("train"):
            if file.sample_ids[row].startswith("b/"):
                (root / file.sample_ids[row]).unlink()
        assert held_out(update(root)) == {"a": 3, "b": 3}
        assert "No images for training are left of 'b': those for validation" in caplog.text
        caplog.clear()
        assert held_out(update(root, resplit=True)) == {"a": 3, "b": 1}
        assert not caplog.text

    def test_an_image_with_two_labels_is_named_when_the_file_is_written(self, root, update, caplog):
        shutil.copy(root / "a" / "0.png", root / "b" / "copy.png")
        update(root)
        assert "'a/0.png' (a) and 'b/copy.png' (b) have the same content" in caplog.text
        caplog.clear()
        update(root)
        assert "same content" not in caplog.text


class TestResplit:
    def test_it_gives_what_a_fresh_file_has(self, root, tmp_path, update):
        for seed in range(100, 130):
            if not seed % 10:
                update(root)
            paint(root / "b" / f"{seed}.png", seed)
        grown = by_content(update(root))
        extract(root, tmp_path / "fresh.h5", TINY)
        fresh = by_content(open_features(tmp_path / "fresh.h5"))
        assert fresh != grown
        assert by_content(update(root, resplit=True)) == fresh
        content = (tmp_path / "f.h5").read_bytes()
        update(root, resplit=True)  # nothing left to do
        assert (tmp_path / "f.h5").read_bytes() == content

    def test_another_fraction_needs_it(self, root, tmp_path, update):
        update(root)
        content = (tmp_path / "f.h5").read_bytes()
        with pytest.raises(ConfigError, match=r"val fraction 0\.2, not 0\.4.*resplit=True"):
            update(root, val_fraction=0.4)
        assert (tmp_path / "f.h5").read_bytes() == content
        assert held_out(update(root, val_fraction=0.4, resplit=True)) == {"a": 6, "b": 6}
        assert held_out(update(root, val_fraction=0.4)) == {"a": 6, "b": 6}
        assert held_out(update(root, val_fraction=0, resplit=True)) == {"a": 0, "b": 0}

    def test_the_report_counts_what_it_moves(self, root, tmp_path):
        extract(root, tmp_path / "f.h5", TINY)
        options = ExtractOptions(backbone="tiny", val_fraction=0.4, resplit=True)
        report = extract(root, tmp_path / "f.h5", options)
        assert (report.num_extracted, report.num_relabelled) == (0, 6)
        assert report.split_sizes == {"train": 18, "val": 12}

    def test_options_without_effect_are_said(self, photos, update, caplog):
        source = photos({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
        caplog.set_level(logging.WARNING)
        update(source)
        assert not caplog.records
        update(source, val_fraction=0.4)
        update(source, resplit=True)
        assert "the val fraction has no effect" in caplog.text
        assert "resplit has no effect" in caplog.text
