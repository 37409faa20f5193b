"""Several layers at once: each file is what a run with its layer alone writes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import featx_cli

from featx.backbones.engines import OnnxEngine, SideBySide
from featx.errors import ConfigError
from featx.extraction import backbone
from featx.extraction.options import ExtractOptions
from featx.features.file import open_features
from featx.features.journal import Journal
from featx.images.sources.sample import FileSource
from featx.stages.extract import extract, extract_layers

pytestmark = pytest.mark.usefixtures("fast_extraction")
LAYERS = ("stage2", "stage3", "penultimate")
OWN = ExtractOptions(backbone="tiny", image_size=32, batch_size=4)


def content(path: Path) -> tuple[Any, ...]:
    """Return all of a feature file but its checksums and environment."""
    file = open_features(path)
    details = {name: own for name, own in file.header.details.items() if name != "sha256"}
    parts = file.features, file.labels, file.splits, file.digests, file.stamps
    return file.header.spec, details, file.sample_ids, *(part.tobytes() for part in parts)


@pytest.fixture
def outputs(tmp_path: Path) -> dict[str, Path]:
    return {layer: tmp_path / f"f-{layer}.h5" for layer in LAYERS}


@pytest.fixture
def source(photos) -> str:
    root = photos({"ants": 11, "bees": 9})
    (root / "bees" / "copy.jpg").write_bytes((root / "bees" / "000.jpg").read_bytes())
    (root / "ants" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    return str(root)


@pytest.fixture
def reads(monkeypatch) -> Counter[int]:
    """How often each image is read."""
    count, read = Counter[int](), FileSource.read

    def counted(self: FileSource, position: int) -> Any:
        count[position] += 1
        return read(self, position)

    monkeypatch.setattr(FileSource, "read", counted)
    return count


def alone(source: str, folder: Path, layer: str, options: dict[str, Any]) -> Path:
    path = folder / f"alone-{layer}.h5"
    own = {"layer": None if layer == "penultimate" else layer}
    extract(source, path, ExtractOptions(**vars(OWN) | options | own))
    return path


@pytest.mark.parametrize(
    "options", [{}, {"engine": "torch"}, {"views": 2}, {"dtype": "float16"}, {"precision": "int8"}]
)
def test_each_file_is_that_of_its_layer_alone_to_the_bit(options, source, outputs, tmp_path, reads):
    asked = options | {"on_error": "skip"}
    reports = extract_layers(source, outputs, ExtractOptions(**vars(OWN) | asked))
    if "precision" not in options:
        assert set(reads.values()) == {1}
    assert {report.num_extracted for report in reports} == {20}
    assert {report.num_duplicates for report in reports} == {1}
    for layer, path in outputs.items():
        assert content(path) == content(alone(source, tmp_path, layer, asked))


def test_layers_of_one_network_are_one_graph(source, outputs, monkeypatch):
    engines = []
    own = backbone.engine_of_several
    monkeypatch.setattr(
        "featx.extraction.together.engine_of_several",
        lambda parts: engines.append(own(parts)) or engines[-1],
    )
    extract_layers(source, outputs, ExtractOptions(**vars(OWN) | {"on_error": "skip"}))
    assert [type(engine) for engine in engines] == [OnnxEngine]


def test_where_one_graph_gives_other_bits_each_layer_has_its_own(
    source, outputs, tmp_path, monkeypatch
):
    asked, features = {"on_error": "skip"}, OnnxEngine.features

    def differs(self: OnnxEngine, pixels: np.ndarray) -> np.ndarray:
        found = features(self, pixels)
        return np.nextafter(found, np.inf) if found.shape[1] > 300 else found

    monkeypatch.setattr(OnnxEngine, "features", differs)
    engines, own = [], backbone.engine_of_several
    monkeypatch.setattr(
        "featx.extraction.together.engine_of_several",
        lambda parts: engines.append(own(parts)) or engines[-1],
    )
    extract_layers(source, outputs, ExtractOptions(**vars(OWN) | asked))
    assert [type(engine) for engine in engines] == [SideBySide]
    for layer, path in outputs.items():
        assert content(path) == content(alone(source, tmp_path, layer, asked))


@pytest.mark.parametrize("num_appends", [0, 4, 7, 8])
def test_an_interrupted_run_is_resumed_to_the_same_bits(
    num_appends, source, outputs, tmp_path, monkeypatch, reads
):
    """The outputs are interrupted in the middle of a batch: one has it, the others have not."""
    asked = ExtractOptions(**vars(OWN) | {"on_error": "skip"})
    append, done = Journal.append, []

    def interrupted(self: Journal, batch: Any) -> None:
        if len(done) == num_appends:
            raise KeyboardInterrupt
        done.append(len(batch.sample_ids))
        append(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract_layers(source, outputs, asked)
    reads.clear()
    reports = extract_layers(source, outputs, asked)
    in_part = 4 if num_appends % len(LAYERS) else 0  # made once more, for those without it
    assert sum(reads.values()) <= 22 - 4 * (num_appends // len(LAYERS)) + 2 * in_part
    whole = 4 * -(-num_appends // len(LAYERS))
    assert reports[0].num_resumed == whole - (whole > 11)  # without the broken image
    for layer, path in outputs.items():
        assert content(path) == content(alone(source, tmp_path, layer, {"on_error": "skip"}))


def test_again_nothing_is_done_and_a_missing_file_alone_is_made(source, outputs, reads):
    asked = ExtractOptions(**vars(OWN) | {"on_error": "skip"})
    extract_layers(source, outputs, asked)
    before = {path: path.read_bytes() for path in outputs.values()}
    reads.clear()
    assert all(report.is_unchanged for report in extract_layers(source, outputs, asked))
    assert not reads
    outputs["stage3"].unlink()
    reports = extract_layers(source, outputs, asked)
    assert [report.num_extracted for report in reports] == [0, 20, 0]
    expected = content(outputs["stage3"])
    outputs["stage3"].write_bytes(before[outputs["stage3"]])
    assert content(outputs["stage3"]) == expected
    assert {path: path.read_bytes() for path in outputs.values()} == before


def test_new_images_come_into_files_of_which_one_is_new(photos, outputs, tmp_path):
    source = photos({"ants": 9, "bees": 6})
    extract(str(source), outputs["stage2"], ExtractOptions(**vars(OWN) | {"layer": "stage2"}))
    bees = sorted((source / "bees").iterdir())
    for number in (3, 4):
        (source / "bees" / f"more{number}.jpg").write_bytes(bees[number].read_bytes() + b"tail")
    sorted((source / "ants").iterdir())[-1].unlink()
    reports = extract_layers(str(source), outputs, OWN)
    assert [report.num_images for report in reports] == [16, 16, 16]
    whole = {layer: open_features(path) for layer, path in outputs.items()}
    for layer in LAYERS:
        other = open_features(alone(str(source), tmp_path, layer, {}))
        assert other.sample_ids == whole[layer].sample_ids
        np.testing.assert_array_equal(other.features, whole[layer].features)


def test_other_settings_of_one_file_do_not_mix(source, outputs):
    """The file there keeps its image size, and is made by itself."""
    asked = ExtractOptions(backbone="tiny", on_error="skip")
    extract(
        source,
        outputs["stage2"],
        ExtractOptions(**vars(OWN) | {"layer": "stage2", "image_size": 48, "on_error": "skip"}),
    )
    Path(source, "ants", "000.jpg").unlink()
    reports = extract_layers(source, outputs, asked)
    assert [each.spec.preprocess.image_size for each in reports] == [48, 32, 32]


@pytest.mark.parametrize(
    ("given", "message"),
    [({"report": Path("r.json")}, "report"), ({"cut": "stage2"}, "cut"), ({}, "output of its own")],
)
def test_what_several_layers_cannot_have_is_said(given, message, source, tmp_path):
    outputs = {"stage2": tmp_path / "a.h5", "stage3": tmp_path / ("b.h5" if given else "a.h5")}
    with pytest.raises(ConfigError, match=message):
        extract_layers(source, outputs, ExtractOptions(backbone="tiny", **given))


def test_the_command_writes_a_file_for_each_layer_given(photos, tmp_path):
    source, layers = photos({"ants": 4, "bees": 4}), ("--layer", "stage2", "--layer", "penultimate")
    asked = ("extract", source, "-b", "tiny", *layers, "-o", tmp_path / "out" / "f.h5")
    result = featx_cli(*asked)
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"f-stage2.h5", "f-penultimate.h5"}
    assert result.stdout.count("written") == 2
    assert featx_cli(*asked).stdout.count("up to date") == 2
    one = featx_cli("extract", source, "-b", "tiny", "--layer", "stage2", "-o", tmp_path / "one.h5")
    assert one.exit_code == 0
    assert content(tmp_path / "one.h5") == content(tmp_path / "out" / "f-stage2.h5")
