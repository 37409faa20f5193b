"""Options that are not given: those of the file that is brought up to date."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featx.artifact import Header
from featx.errors import ArtifactInvalid, ArtifactMismatch, BackboneError, ConfigError, SourceError
from featx.extraction.options import ExtractOptions, ResolvedOptions
from featx.features.file import open_features
from featx.stages.extract import extract

Photos = Callable[..., Path]
TINY = ExtractOptions(backbone="tiny")
OTHERS: dict[str, dict[str, Any]] = {
    "backbone": {},
    "weights": {"weights": "none", "seed": 3},
    "layer": {"layer": "stage2", "pool": "max"},
    "image_size": {"image_size": 48, "resize": 50},
    "crop": {"crop": "center", "image_size": 40, "resize": 48},
    "decode": {"decode": "scaled"},
    "dtype": {"dtype": "float16"},
    "max_pixels": {"max_pixels": 10**6},
    "precision": {"precision": "int8"},
    "val_fraction": {"val_fraction": 0.5},
    "on_error": {"on_error": "skip", "max_bad": 0.25},
}


@pytest.fixture
def source(photos: Photos) -> Path:
    return photos({"ants": 8, "bees": 8})


def details(output: Path) -> dict[str, Any]:
    header = open_features(output).header
    names = ("request", "dtype", "max_pixels", "val_fraction", "on_error", "max_bad")
    return {"spec": header.spec} | {name: header.details[name] for name in names}


@pytest.mark.parametrize("name", OTHERS)
def test_an_update_keeps_every_setting_of_the_file(source, tmp_path, name):
    output = tmp_path / "f.h5"
    extract(source, output, replace(TINY, **OTHERS[name]))
    before, made = output.read_bytes(), details(output)
    for given in (None, ExtractOptions(), ExtractOptions(restart=True)):
        again = extract(None, output, given)
        assert output.read_bytes() == before
        assert again.is_unchanged == (given is None or not given.restart)
    assert extract(source, output).is_unchanged
    shutil.copy(source / "ants" / "000.jpg", source / "bees" / "new.jpg")
    report = extract(None, output)
    assert (report.num_new, report.num_images) == (1, 17)
    assert details(output) == made


@pytest.mark.parametrize("name", sorted(OTHERS.keys() - {"backbone", "val_fraction"}))
def test_overwrite_starts_from_the_defaults(source, tmp_path, name):
    output, fresh = tmp_path / "f.h5", tmp_path / "fresh.h5"
    extract(source, fresh, TINY)
    extract(source, output, replace(TINY, **OTHERS[name]))
    extract(source, output, replace(TINY, overwrite=True))
    assert output.read_bytes() == fresh.read_bytes()


def test_an_option_that_is_given_joins_those_of_the_file(source, tmp_path):
    output = tmp_path / "f.h5"
    made = replace(TINY, image_size=48, weights="none", seed=2, on_error="skip")
    extract(source, output, made)
    assert extract(source, output, ExtractOptions(image_size=48)).is_unchanged
    assert extract(source, output, ExtractOptions(seed=2, backbone="tiny")).is_unchanged
    with pytest.raises(ArtifactMismatch) as caught:
        extract(source, output, ExtractOptions(image_size=64))
    message = str(caught.value)
    assert "preprocess.image_size: expected 64, found 48" in message
    assert "weights" not in message
    (source / "ants" / "bad.jpg").write_bytes(b"")
    assert len(extract(None, output).skipped) == 1
    report = extract(None, output, ExtractOptions(val_fraction=0.5, resplit=True))
    assert open_features(output).header.details["val_fraction"] == 0.5
    assert report.split_sizes["val"] >= 4


@pytest.mark.parametrize(
    ("changes", "free"),
    [
        ({"backbone": "resnet50"}, "f-resnet50.h5"),
        ({"weights": "none"}, "f-random.h5"),
        ({"layer": "stage2"}, "f-stage2.h5"),
        ({"image_size": 48}, "f-48px.h5"),
        ({"precision": "bf16"}, "f-bf16.h5"),
        ({"dtype": "float16"}, "f-float16.h5"),
        ({"max_pixels": 10**6}, "f-2.h5"),
    ],
    ids=str,
)
def test_what_would_cost_the_cache_is_refused_with_a_free_name(source, tmp_path, changes, free):
    output = tmp_path / "f.h5"
    extract(source, output, TINY)
    before = output.read_bytes()
    for taken in ("", ".partial"):
        with pytest.raises(ArtifactMismatch) as caught:
            extract(source, output, ExtractOptions(**changes))
        advice = f"Use overwrite=True to replace it, or another output, such as {tmp_path / free}."
        assert advice in str(caught.value)
        (tmp_path / f"{free}{taken}").touch()
        stem = free.removesuffix(".h5").removesuffix("-2")
        number = {"f-2.h5": 3}.get(free, 2) + (taken == ".partial")
        free = f"{stem}-{number}.h5"
    assert output.read_bytes() == before


def test_another_source_is_refused_with_its_name(source, photos, tmp_path):
    output = tmp_path / "my features.h5"
    extract(source, output, replace(TINY, image_size=48))
    other = photos({"ants": 3, "bees": 3}, name="it's other", seed=5)
    with pytest.raises(ArtifactMismatch) as caught:
        extract(other, output)
    message = str(caught.value)
    assert message.count("expected") == 1
    assert f"such as '{tmp_path}/my features-it-s-other.h5'." in message


def test_a_source_that_moved_keeps_the_settings(source, tmp_path):
    output = tmp_path / "f.h5"
    extract(source, output, replace(TINY, image_size=48))
    made, moved = details(output), source.rename(tmp_path / "moved")
    with pytest.raises(SourceError, match=r"does not exist.*made from it.*verify_content=True"):
        extract(None, output)
    report = extract(moved, output, ExtractOptions(verify_content=True))
    assert report.num_extracted == 0
    assert details(output) == made
    assert open_features(output).header.details["source"] == str(moved)
    assert extract(None, output).is_unchanged


def test_another_backbone_takes_nothing_from_the_file(source, tmp_path):
    output = tmp_path / "f.h5"
    extract(source, output, replace(TINY, layer="stage2", on_error="skip"))
    with pytest.raises(ArtifactMismatch, match="backbone: expected 'resnet18', found 'tiny'"):
        extract(source, output, ExtractOptions(backbone="resnet18"))
    with pytest.raises(BackboneError, match="Unknown backbone 'tinny'"):
        extract(source, output, ExtractOptions(backbone="tinny"))


def test_an_unfinished_extraction_goes_on_with_its_options(source, tmp_path):
    def stop(done: int, _total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    output, whole = tmp_path / "f.h5", tmp_path / "whole.h5"
    options = replace(TINY, weights="none", seed=5, val_fraction=0.4, batch_size=4, workers=1)
    extract(source, whole, options)
    with pytest.raises(KeyboardInterrupt):
        extract(source, output, options, progress=stop)
    report = extract(None, output, ExtractOptions(batch_size=4, workers=1))
    assert report.num_resumed >= 4
    assert output.read_bytes() == whole.read_bytes()


def test_without_a_file_the_source_must_be_given(tmp_path):
    output = tmp_path / "new" / "f.h5"
    with pytest.raises(ConfigError, match=r"Say where the images are.*Give a folder of images"):
        extract(None, output)
    assert not output.parent.exists()


def test_max_bad_needs_skip_here_or_in_the_file(source, tmp_path):
    output = tmp_path / "f.h5"
    share = ExtractOptions(backbone="tiny", max_bad=0.5)
    with pytest.raises(ConfigError, match="max_bad needs on_error='skip'"):
        extract(source, output, share)
    extract(source, output, replace(TINY, on_error="skip"))
    extract(source, output, share)
    assert open_features(output).header.details["max_bad"] == 0.5
    assert extract(source, output, share).is_unchanged
    with pytest.raises(ConfigError, match="max_bad needs on_error='skip'"):
        extract(source, output, replace(share, on_error="fail"))


def test_a_file_of_an_earlier_version_skips_bad_images_if_it_did(source, tmp_path):
    (source / "ants" / "bad.jpg").write_bytes(b"")
    output = tmp_path / "f.h5"
    extract(source, output, replace(TINY, on_error="skip"))
    rewrite_details(output, lambda found: found.pop("on_error") and found.pop("max_bad"))
    assert extract(None, output).is_unchanged


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: found["request"].update(image_size="large"),
        lambda found: found["request"].update(pool="sum"),
        lambda found: found["request"].update(colour="red"),
        lambda found: found["request"].update(weights=3),
        lambda found: found.update(on_error=["skip"]),
        lambda found: found.update(max_bad=7),
    ],
)
def test_options_that_no_featx_wrote_are_damage(source, tmp_path, damage):
    output = tmp_path / "f.h5"
    extract(source, output, TINY)
    rewrite_details(output, damage)
    with pytest.raises((ArtifactInvalid, FileExistsError), match=r"damaged|no rows can be taken"):
        extract(source, output)


def rewrite_details(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the header of a feature file says, its checksum with it."""
    with h5py.File(path, "r+") as file:
        header = json.loads(file.attrs["header"])
        del header["checksum"], header["fingerprint"]
        change(header["details"])
        header["classes"] = tuple(header["classes"])
        file.attrs["header"] = np.bytes_(Header(**header).to_json().encode())


def test_resolved_options_leave_nothing_open_but_what_the_weights_decide():
    resolved = ExtractOptions().resolved()
    assert type(resolved) is ResolvedOptions
    assert {name for name, value in vars(resolved).items() if value is None} == {
        *("layer", "cut", "image_size", "resize", "crop"),
        *("report", "batch_size", "workers", "part", "ray", "ray_workers"),
    }
    assert [field.name for field in fields(resolved)] == [f.name for f in fields(ExtractOptions)]
