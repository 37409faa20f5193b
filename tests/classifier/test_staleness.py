"""A head and its feature file of today: fresh, outdated or stale, and who refuses it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from activations import cut_header, write_activations
from commands import featx_cli
from feature_files import InThisProcess, make_columns
from headers import complete_header
from PIL import Image

import featx
from featx.classifier.staleness import (
    find_features,
    record_provenance,
    require_current,
    staleness_of,
)
from featx.errors import ArtifactInvalid, ArtifactMismatch
from featx.features.file import open_features
from featx.features.records import RowLayout
from featx.heads.head import Head, open_head, save_head
from featx.heads.tasks import SINGLE_LABEL

Row = tuple[str, str, str]
"""Name, label, split."""


@pytest.fixture
def rows() -> list[Row]:
    splits = ["train"] * 8 + ["val"] * 4
    return [(f"{i:02d}.png", "ab"[i % 2], split) for i, split in enumerate(splits)]


@pytest.fixture
def extract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Row]], Path]:
    """Return a function that extracts features of a table's images; an image is its name."""
    monkeypatch.setattr("featx.extraction.run.start_verifier", InThisProcess)

    def run(rows: list[Row]) -> Path:
        for name, _, _ in rows:
            path = tmp_path / name
            if not path.exists():
                pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (32, 32, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(path)
        table = tmp_path / "images.csv"
        table.write_text("\n".join(["path,label,split", *map(",".join, rows)]))
        options = featx.ExtractOptions(backbone="tiny")
        featx.extract(table, tmp_path / "f.h5", options)
        return tmp_path / "f.h5"

    return run


@pytest.fixture
def head(extract: Callable[[list[Row]], Path], rows: list[Row], tmp_path: Path) -> Path:
    featx.train_head(extract(rows), tmp_path / "h.safetensors")
    return tmp_path / "h.safetensors"


def told(head: Path) -> str | None:
    found = staleness_of(open_head(head), open_features(head.with_name("f.h5")))
    return None if found.changes is None else str(found.changes).partition("; ")[2]


def command(*arguments: object) -> tuple[int, str]:
    result = featx_cli(*arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows, None),
        (lambda rows: rows[::-1], None),
        (lambda rows: [("00.png", "b", "train"), *rows[1:]], "since then 1 relabelled"),
        (lambda rows: rows[1:], "since then 1 gone"),
        (lambda rows: [*rows, ("new.png", "a", "train")], "since then 1 new"),
        (lambda rows: [("00.png", "a", "val"), *rows[1:]], "since then 1 gone"),
        (lambda rows: [("00.png", "", "train"), *rows[1:]], "since then 1 gone"),
        (lambda rows: [*rows, ("new.png", "", "train")], None),
        (lambda rows: [*rows, ("new.png", "a", "val")], None),
        (lambda rows: [*rows[:-1], (rows[-1][0], "a", "val")], None),
    ],
)
def test_rows_that_train_make_a_head_stale(head, extract, rows, change, expected):
    extract(change(rows))
    assert told(head) == expected
    exit_code, output = command("check", head)
    assert exit_code == (expected is not None)
    assert ("stale" if expected else "fresh") in output
    assert expected is None or expected in output


def test_renamed_images_leave_a_head_as_it_is(head, extract, rows, tmp_path):
    (tmp_path / "00.png").rename(tmp_path / "zz.png")
    extract([("zz.png", "a", "train"), *rows[1:]])
    assert told(head) is None


def test_images_renamed_since_are_found_by_content(head, rows, tmp_path):
    for name, _, _ in rows[:5]:
        (tmp_path / name).rename(tmp_path / f"renamed {name}")
    new = [(f"renamed {row[0]}", *row[1:]) for row in rows[:5]] + rows[5:]
    (tmp_path / "images.csv").write_text("\n".join(["path,label,split", *map(",".join, new)]))
    proof = featx.export_onnx(head, tmp_path / "m.onnx").proof
    assert proof is not None
    assert proof.num_images == 12


def test_other_features_of_the_same_images_are_a_change(head, extract, rows, tmp_path):
    options = featx.ExtractOptions(backbone="tiny", dtype="float16", overwrite=True)
    featx.extract(tmp_path / "images.csv", tmp_path / "f.h5", options)
    assert told(head) == "since then 8 with other features"


def test_changed_scores_are_outdated_and_said(head, extract, rows, caplog):
    features = extract([*rows, ("new.png", "a", "val")])
    assert staleness_of(open_head(head), open_features(features)).outdated == ("val",)
    featx.export_onnx(head, head.with_name("m.onnx"))
    assert "The val images changed since the head was trained" in caplog.text
    exit_code, output = command("check", head)
    assert exit_code == 0
    assert "outdated" in output


@pytest.mark.parametrize("verify", [True, False])
def test_a_stale_head_is_exported_only_on_demand(head, extract, rows, verify):
    extract([*rows, ("new.png", "a", "train")])
    model, card = head.with_name("m.onnx"), head.with_name("card.md")
    with pytest.raises(ArtifactMismatch, match=r"trained on 8 rows; since then 1 new.*stale=True"):
        featx.export_onnx(head, model, featx.ExportOptions(verify=verify))
    assert not model.exists()
    featx.export_onnx(head, model, featx.ExportOptions(verify=verify, stale=True, card=card))
    assert "stale" in card.read_text()
    exit_code, output = command("info", model)
    assert exit_code == 0
    assert "trained on 8 rows; since then 1 new" in output


def test_a_fresh_model_does_not_speak_of_it(head):
    model = head.with_name("m.onnx")
    featx.export_onnx(head, model, featx.ExportOptions(stale=True))
    assert "stale" not in command("info", model)[1]


def test_a_stale_head_is_reported_only_on_demand(head, extract, rows):
    extract([("00.png", "b", "train"), *rows[1:]])
    page = head.with_name("report.html")
    exit_code, output = command("report", head, "-o", page)
    assert exit_code == 1
    assert "stale" in output
    assert command("report", head, "-o", page, "--stale")[0] == 0
    assert "The head is stale: trained on 8 rows; since then 1 relabelled" in page.read_text()


def test_a_head_and_its_features_may_be_moved(head, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("h.safetensors", "f.h5"):
        shutil.move(tmp_path / name, moved / name)
    path = moved / "h.safetensors"
    assert find_features(open_head(path), path) == moved / "f.h5"
    exit_code, output = command("check", path)
    assert exit_code == 0
    assert "fresh" in output
    shutil.copy(moved / "f.h5", tmp_path / "given.h5")
    assert "given.h5" in command("check", path, tmp_path / "given.h5")[1]
    featx.export_onnx(path, moved / "m.onnx")


def test_check_says_where_it_cannot_tell(head):
    head.with_name("f.h5").unlink()
    exit_code, output = command("check", head)
    assert exit_code == 0
    assert "its feature file is not there" in output


def test_features_of_another_backbone_are_no_match(head):
    opened = open_head(head)
    spec = {**opened.header.spec, "layer": "another"}
    save_head(head, replace(opened, header=replace(opened.header, spec=spec)), overwrite=True)
    exit_code, output = command("check", head)
    assert exit_code == 1
    assert "other features" in output
    with pytest.raises(ArtifactMismatch, match="layer: expected 'another'"):
        staleness_of(open_head(head), open_features(head.with_name("f.h5")))


def with_details(head: Path, **changes: Any) -> None:
    opened = open_head(head)
    details = {**opened.header.details, **changes}
    details = {name: value for name, value in details.items() if value is not None}
    save_head(head, replace(opened, header=replace(opened.header, details=details)), overwrite=True)


def test_heads_of_earlier_versions_work_and_say_that_they_do_not_know(head):
    with_details(head, provenance=None)
    found = staleness_of(open_head(head), open_features(head.with_name("f.h5")))
    assert not found.known
    assert not found.is_stale
    exit_code, output = command("check", head)
    assert exit_code == 0
    assert "earlier featx" in output
    featx.export_onnx(head, head.with_name("m.onnx"))


def test_a_damaged_record_is_no_match(head):
    with_details(head, provenance={"trained": 3})
    with pytest.raises(ArtifactInvalid, match=r"details\.provenance\.trained is 3"):
        require_current(open_head(head), open_features(head.with_name("f.h5")), allow_stale=True)


def test_a_few_shot_head_knows_the_rows_that_were_drawn(head, extract, rows):
    shots = featx.TrainOptions(few_shot=featx.FewShot(2, repeats=2), overwrite=True)
    made = featx.train_head(head.with_name("f.h5"), head, shots)
    assert made.head.header.details["provenance"]["trained"]["num_rows"] == 4
    results = []
    for i in range(8):
        changed = list(rows)
        changed[i] = (rows[i][0], "ab"[(i + 1) % 2], "train")
        extract(changed)
        results.append(told(head))
    assert results.count("since then 1 relabelled") == 4
    assert results.count(None) == 4


def test_check_tells_machines_as_well(head, extract, rows):
    extract(rows[1:])
    exit_code, output = command("check", head, "--json")
    found = json.loads(output)
    assert exit_code == 1
    assert not found["is_fresh"]
    assert found["staleness"]["changes"]["gone"] == 1


@pytest.fixture
def tell(tmp_path: Path) -> Callable[..., str | None]:
    """Return a function that trains on one made-up file, and tells what another changed."""

    def run(before: RowLayout, after: RowLayout, *, seed: int = 0, **views: Any) -> str | None:
        path = tmp_path / "maps.h5"
        write_activations(path, before, 30)
        trained = open_features(path)
        details = record_provenance(trained, SINGLE_LABEL)
        header = complete_header("head", trained.header.spec, trained.classes, details)
        header_after = cut_header(after)
        if views:
            drawn = header_after.details["views"] | views
            header_after = replace(header_after, details={**header_after.details, "views": drawn})
        columns = make_columns(30)
        write_activations(
            path, after, 30, seed=seed, views_seed=len(views), header=header_after, **columns
        )
        head = Head(header, ((np.zeros((3, 4), np.float32), np.zeros(3, np.float32)),))
        found = staleness_of(head, open_features(path))
        return None if found.changes is None else str(found.changes)

    return run


MAPS = RowLayout((4, 3, 3), "float16")


@pytest.mark.parametrize("layout", [MAPS, RowLayout((4,))])
def test_views_that_are_drawn_otherwise_make_a_head_stale(tell, layout):
    viewed = replace(layout, num_views=2)
    assert tell(viewed, viewed) is None
    assert tell(viewed, viewed, augment=["flip"])
    assert tell(viewed, replace(layout, num_views=3))
    assert tell(viewed, layout)
    assert tell(layout, viewed) is None  # it never saw any


def test_other_activations_make_a_head_stale_in_their_own_bits(tell):
    assert tell(MAPS, MAPS) is None
    assert tell(MAPS, MAPS, seed=1)
