"""The audit: wrong labels first, copies by their kind, no image scored by its own head."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from caches import far_apart, separable, write_cache, write_labels
from commands import featx_cli
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.errors import ArtifactExists, ConfigError
from featx.features.file import open_features
from featx.features.marks import read_marks
from featx.stages.audit import AuditReport, Finding, audit, write_findings
from featx.stages.audit.labels import Doubts
from featx.training.options import TrainOptions
from featx.training.samples import read_excluded

NAMES = ("ant", "bee", "wasp")


@pytest.fixture
def planted(tmp_path):
    """A feature file with twelve wrong labels, some in each split, and their rows."""
    made = far_apart()
    wrong = np.random.default_rng(1).permutation(len(made["labels"]))[:12]
    made["labels"] = made["labels"].copy()
    made["labels"][wrong] = (made["labels"][wrong] + 1) % 3
    return write_cache(tmp_path / "f.h5", **made), wrong, made["labels"]


def test_wrong_labels_of_all_splits_come_first(planted):
    path, wrong, labels = planted
    report = audit(path)
    found = report.of_kind("label")
    names = {f"{row:04d}.jpg": row for row in wrong.tolist()}
    assert {each.sample_id for each in found[:12]} == set(names)
    for each in found[:12]:
        row = names[each.sample_id]
        assert each.given == NAMES[labels[row]]
        assert each.likely == NAMES[(labels[row] - 1) % 3]
        assert 0 < each.score <= 1
    assert {each.split for each in found[:12]} == {"train", "val", "test"}
    assert sorted((each.score for each in found), reverse=True) == [e.score for e in found]
    assert report.num_evaluated == len(labels)
    assert 8 <= report.num_wrong <= 18


def test_a_second_audit_is_the_same(planted):
    path, _, _ = planted
    assert audit(path).findings == audit(path).findings


def test_labels_of_validation_and_test_images_change_no_other_finding(tmp_path):
    made = far_apart()
    before = audit(write_cache(tmp_path / "a.h5", **made)).findings
    labels = made["labels"].copy()
    held_out = made["splits"] > 0
    labels[held_out] = (labels[held_out] + 1) % 3
    after = audit(write_cache(tmp_path / "b.h5", **made | {"labels": labels})).findings
    assert [e for e in before if e.split == "train"] == [e for e in after if e.split == "train"]
    assert len(after) > len(before)


def test_images_of_one_group_do_not_evaluate_each_other(tmp_path):
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 80)).astype(np.float32)
    features[30:] = features[:30]  # each image twice, with one wrong label for both
    labels = np.tile(np.arange(30) % 3, 2)
    groups = tuple(map(str, np.tile(np.arange(30), 2)))
    splits = np.zeros(60, np.uint8)
    apart = audit(write_cache(tmp_path / "a.h5", features, labels, splits, groups=groups))
    alone = audit(write_cache(tmp_path / "b.h5", features, labels, splits))
    assert len(apart.of_kind("label")) > 15  # noise, that nobody can tell
    assert len(alone.of_kind("label")) < 10  # told by the copy


def test_a_group_in_several_splits_is_named(tmp_path):
    made = far_apart(60)
    groups = [""] * 60
    groups[4] = groups[5] = "patient 1"  # in two splits
    groups[8] = groups[20] = "patient 2"  # in one
    report = audit(write_cache(tmp_path / "f.h5", **made, groups=tuple(groups)))
    (note,) = [each for each in report.notes if "splits" in each]
    assert note.startswith("1 group has images in several splits, that of '0004.jpg' first")
    whole = audit(write_cache(tmp_path / "g.h5", **made, groups=("patient", *[""] * 59)))
    assert not any("splits" in each for each in whole.notes)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_the_confident_counts_are_those_of_their_definition(num_classes, count, seed):
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(num_classes), count)
    given_labels = random.integers(0, num_classes, count)
    doubts = Doubts(np.arange(count), given_labels, probabilities, 5)
    expected = np.zeros((num_classes, num_classes), int)
    bounds = {k: probabilities[given_labels == k, k].mean() for k in set(given_labels.tolist())}
    for row in range(count):
        over = [k for k, bound in bounds.items() if probabilities[row, k] >= bound - 1e-15]
        if over:
            expected[given_labels[row], max(over, key=lambda k: probabilities[row, k])] += 1
    assert np.array_equal(doubts.confident_counts(), expected)
    assert 0 <= doubts.num_wrong() <= count


def test_copies_are_conflicts_leaks_or_just_copies(tmp_path):
    made = separable(60)
    made["labels"] = np.arange(60) % 3
    made["splits"] = np.zeros(60, np.uint8)
    made["splits"][30:] = 1
    contents = np.arange(1, 61)
    contents[3] = contents[0]  # same label, same split
    contents[4] = contents[2]  # another label
    contents[36] = contents[6]  # another split
    report = audit(write_cache(tmp_path / "f.h5", contents=contents, **made))
    found = {(e.kind, e.sample_id, e.other) for e in report.findings if e.kind != "label"}
    assert found == {
        ("copy", "0003.jpg", "0000.jpg"),
        ("conflict", "0004.jpg", "0002.jpg"),
        ("leak", "0036.jpg", "0006.jpg"),
    }


def test_copies_of_a_picture_come_in_small_groups_first_and_very_many_in_one_line(tmp_path):
    made = far_apart(240)
    made["splits"][:] = 0
    contents = np.arange(240) + 1
    contents[:180:3] = 1  # 60 of one picture, and one label
    contents[231] = contents[228]
    path = write_cache(tmp_path / "f.h5", **made, contents=contents)
    output = featx_cli("audit", path, "--no-html", "-q").output
    lines = output.split("The same picture twice: 60 images")[1].splitlines()[1:3]
    assert lines == ["  0231.jpg is 0228.jpg", "  59 images like 0000.jpg"]


def test_unlabelled_images_have_no_label_to_be_wrong_but_may_be_copies(tmp_path):
    made = separable(60)
    made["labels"] = np.full(60, -1)
    made["splits"][8:10] = 0
    contents = np.arange(1, 61)
    contents[9] = contents[8]
    report = audit(write_cache(tmp_path / "f.h5", contents=contents, **made))
    assert report.num_evaluated == 0
    assert [each.sample_id for each in report.findings] == ["0009.jpg"]


def test_one_class_cannot_be_evaluated(tmp_path):
    made = separable(30)
    made["labels"] = np.zeros(30, int)
    report = audit(write_cache(tmp_path / "f.h5", **made))
    assert report.num_evaluated == 0
    assert "one class, 'ant'" in report.notes[0]


def test_marked_lines_of_the_table_are_left_out_of_training(planted, tmp_path):
    path, wrong, _ = planted
    table = tmp_path / "audit.csv"
    write_findings(audit(path), table)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert read_excluded(table) == ()  # nothing is marked
    for row in rows[:3]:
        row["drop"] = "true"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    marked = read_excluded(table)
    assert marked == tuple(row["sample_id"] for row in rows[:3])
    cache = open_features(path)
    assert set(marked) <= {cache.sample_ids[row] for row in wrong}
    TrainOptions(exclude=marked)


def test_marks_are_not_overwritten_unasked_and_features_never(planted, tmp_path):
    path, _, _ = planted
    report, table = audit(path), tmp_path / "audit.csv"
    write_findings(report, table)
    before = table.read_bytes()
    with pytest.raises(ArtifactExists):
        write_findings(report, table)
    assert table.read_bytes() == before
    with pytest.raises(ConfigError):
        write_findings(report, path, overwrite=True)


def test_the_command_prints_the_worst_first_and_fails_where_asked(planted):
    path, wrong, _ = planted
    result = featx_cli("audit", path, "--top", 3, "-q", "--no-html")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "contradicted" in lines[0]
    assert sum(f"{row:04d}.jpg" in result.output for row in wrong) == 3
    assert featx_cli("audit", path, "-q", "--fail-on", "leaks,conflicts").exit_code == 0
    assert featx_cli("audit", path, "-q", "--fail-on", "labels").exit_code == 1
    assert featx_cli("audit", path, "--fail-on", "nonsense").exit_code == 2


def test_control_characters_in_names_are_escaped(tmp_path, monkeypatch):
    made = separable(60)
    made["splits"][8:10] = 0
    contents = np.arange(1, 61)
    contents[9] = contents[8]
    path = write_cache(tmp_path / "f.h5", contents=contents, **made)
    report = audit(path)
    copies = [each for each in report.findings if each.sample_id == "0009.jpg"]
    odd = tuple(each._replace(sample_id="\x1b[2Jx.jpg") for each in copies)
    monkeypatch.setattr("featx.stages.audit.audit", lambda *_, **__: replace(report, findings=odd))
    result = featx_cli("audit", path, "-q")
    assert "x.jpg" in result.output
    assert "\x1b" not in result.output


def test_the_command_prints_json(planted):
    path, _, _ = planted
    values = json.loads(featx_cli("audit", path, "--json", "-q").stdout)
    assert {"findings", "num_wrong", "confusions"} <= set(values)
    assert values["findings"][0]["kind"] == "label"


def test_an_existing_table_is_refused_before_the_work(planted, tmp_path):
    path, _, _ = planted
    table = tmp_path / "audit.csv"
    table.write_text("mine")
    result = featx_cli("audit", path, "--csv", table)
    assert result.exit_code == 1
    assert "--overwrite" in result.output
    assert table.read_text() == "mine"


def test_the_table_is_refused_for_other_images_of_the_same_names(tmp_path):
    made, contents = separable(60), np.arange(1, 61)
    made["splits"][8:10] = 0
    contents[9] = contents[8]
    path = write_cache(tmp_path / "a.h5", contents=contents, **made)
    table = tmp_path / "audit.csv"
    write_findings(audit(path), table)
    text = table.read_text().splitlines()
    position = text[0].split(",").index("drop")
    cells = next(line for line in text if line.startswith("0009.jpg")).split(",")
    cells[position] = "true"
    table.write_text(f"{text[0]}\n{','.join(cells)}\n")
    assert read_excluded(table, path) == ("0009.jpg",)
    other = write_cache(tmp_path / "b.h5", contents=contents + 60, **made)
    with pytest.raises(ConfigError, match="another content"):
        read_excluded(table, other)
    result = featx_cli("train-head", other, "-o", tmp_path / "head", "--exclude", table)
    assert result.exit_code == 1
    assert "another content" in result.output
    assert featx_cli("train-head", path, "-o", tmp_path / "h", "--exclude", table).exit_code == 0


def classes_of(counts, seed=0):
    """Make well separated classes of so many images, all for training; and their names."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    features = 10 * np.eye(len(counts), 8)[labels] + random.normal(size=(len(labels), 8))
    made = {"features": features.astype(np.float32), "labels": labels}
    made["splits"] = np.zeros(len(labels), np.uint8)
    return made | {"classes": tuple("abcdef"[: len(counts)])}


def test_small_classes_are_evaluated_or_named_and_not_in_the_estimate(tmp_path):
    made = classes_of([40, 40, 4, 2, 1])
    report = audit(write_cache(tmp_path / "f.h5", **made))
    assert report.small_classes == (("c", 4), ("d", 2), ("e", 1))
    assert report.num_evaluated == len(made["labels"]) - 1
    assert "1 label is not evaluated" in report.notes[0]
    assert "e (1 for training)" in report.notes[0]
    assert not {each.given for each in report.of_kind("label")} & {"a", "b", "e"}
    assert report.num_wrong < 3
    result = featx_cli("audit", tmp_path / "f.h5", "--no-html", "-q")
    assert "c (4), d (2), e (1)" in result.output
    assert "no other picture teaches" in " ".join(result.output.split())


def test_suspects_of_a_small_class_are_ranked(tmp_path):
    made = classes_of([40, 40, 4])
    made["labels"] = made["labels"].copy()
    made["labels"][0] = 2  # an image of a, labelled as c
    report = audit(write_cache(tmp_path / "f.h5", **made))
    assert report.findings[0].sample_id == "0000.jpg"
    assert (report.findings[0].given, report.findings[0].likely) == ("c", "a")


def test_a_class_of_the_test_split_alone_is_not_called_wrong(tmp_path):
    made = classes_of([40, 40, 10])
    made["splits"][80:] = 2
    report = audit(write_cache(tmp_path / "f.h5", **made))
    assert report.findings == ()
    assert report.num_evaluated == 80
    assert "c (0 for training)" in report.notes[0]


def test_missing_and_surplus_tags_are_found_and_named(tmp_path):
    random = np.random.default_rng(0)
    has = random.random((200, 3)) < 0.4
    names = np.array(["big", "old", "red"])
    features = (8 * has + random.normal(size=(200, 3))).astype(np.float32)
    labels = ["|".join(names[own]) or "|" for own in has]
    untagged = [row for row in range(200) if labels[row] == "|"]
    missing = next(row for row in range(200) if has[row, 2] and has[row].sum() == 1)
    labels[missing] = "|"  # its only tag: red
    labels[untagged[0]] = "old"
    path = write_labels(tmp_path / "f.h5", features, labels, np.arange(200) % 5 // 4)
    report = audit(path)
    first = {(each.kind, each.sample_id, each.note, each.likely) for each in report.findings[:2]}
    assert first == {
        ("missing", f"{missing:04d}.jpg", "red", "red"),
        ("surplus", f"{untagged[0]:04d}.jpg", "old", "|"),
    }
    assert report.num_evaluated == 200  # images without any tag as well
    assert report.confusions == ()
    assert report.small_classes == ()  # combinations are not classes
    assert report.findings[0].neighbours
    result = featx_cli("audit", path, "--no-html", "-q")
    assert "+ red" in result.output
    assert "− old" in result.output
    assert "old +0 −2, red +1 −0" in result.output


def test_marks_of_two_tags_of_one_image_are_two(tmp_path):
    random = np.random.default_rng(0)
    has = random.random((200, 3)) < 0.4
    has[7] = [True, True, False]
    names = np.array(["big", "old", "red"])
    features = (8 * has + random.normal(size=(200, 3))).astype(np.float32)
    labels = ["|".join(names[own]) or "|" for own in has]
    labels[7] = "|"  # both lack
    path = write_labels(tmp_path / "f.h5", features, labels, np.arange(200) % 5 // 4)
    table = tmp_path / "audit.csv"
    write_findings(audit(path), table)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    own = {row["note"]: row for row in rows if row["sample_id"] == "0007.jpg"}
    assert set(own) == {"big", "old"}
    own["big"]["corrected"], own["old"]["drop"] = "big", "false"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    report = audit(path, marks=table)
    (left,) = [each for each in report.findings if each.sample_id == "0007.jpg"]
    assert (left.note, left.marks) == ("big", ("", "", "big"))
    (kept,) = [each for each in report.dismissed if each.sample_id == "0007.jpg"]
    assert (kept.note, kept.marks) == ("old", ("", "false", ""))


def test_numbers_far_from_what_heads_say_are_found(tmp_path):
    random = np.random.default_rng(0)
    features = random.normal(size=(120, 4)).astype(np.float32)
    values = features @ [3, 1, 0, -2] + random.normal(0, 0.1, 120)
    values[7] += 5
    labels = [f"{value:.3f}" for value in values]
    path = write_labels(tmp_path / "f.h5", features, labels, np.arange(120) % 5 // 4)
    report = audit(path, task="regression")
    (found,) = report.of_kind("value")
    assert (found.kind, found.sample_id) == ("value", "0007.jpg")
    assert found.score > found.limit > 0
    assert float(found.likely) == pytest.approx(values[7] - 5, abs=0.5)
    result = featx_cli("audit", path, "--no-html", "-q", "--task", "regression")
    assert "0007.jpg" in result.output
    assert featx_cli("audit", path, "-q", "--task", "none").exit_code == 2


def test_evidence_is_of_trusted_images_that_repeat_nothing(tmp_path):
    made = far_apart()
    labels = made["labels"].copy()
    labels[[30, 33]] = [1, 2]
    groups = tuple("near" if row in (30, 60, 63) else "" for row in range(len(labels)))
    contents = np.arange(len(labels)) + 1
    contents[90] = contents[30]
    made["features"][[60, 63, 90]] = made["features"][30]
    path = write_cache(
        tmp_path / "f.h5", **made | {"labels": labels}, groups=groups, contents=contents
    )
    found = {each.sample_id: each for each in audit(path).of_kind("label")}
    near = found["0030.jpg"].neighbours
    assert len(near) == 5
    assert {each.label for each in near} == {"ant"}
    names = {each.sample_id for each in near}
    assert not names & {"0030.jpg", "0033.jpg", "0060.jpg", "0063.jpg", "0090.jpg"}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=12, max_size=40), st.integers(0, 99))
def test_findings_of_a_kind_are_about_distinct_images(contents, seed):
    random = np.random.default_rng(seed)
    count = len(contents)
    made = {"features": random.normal(size=(count, 3)).astype(np.float32)}
    made |= {"labels": np.arange(count) % 3, "splits": np.zeros(count, np.uint8)}
    made["splits"][::4] = 1
    with TemporaryDirectory() as folder:
        path = write_cache(Path(folder) / "f.h5", **made, contents=np.array(contents))
        report = audit(path)
    for kind in {each.kind for each in report.findings}:
        named = [each.sample_id for each in report.of_kind(kind)]
        assert len(named) == len(set(named)) <= count
        assert all(each.sample_id != each.other for each in report.of_kind(kind))


nasty = st.text(st.sampled_from("=+-@'\",;\n\r\tx \udcffé"), max_size=6).map(
    lambda text: f"{text}x"
)


@settings(max_examples=60, deadline=None)
@given(nasty, nasty, nasty)
def test_any_names_and_labels_read_back_from_the_table_and_none_is_a_formula(name, other, label):
    found = Finding(name, "copy", "train", label, 0.95, other=other)
    report = AuditReport(Path("f.h5"), (found,), 0, 0.0, (), (), 1, 0.0)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "audit.csv"
        write_findings(report, path)
        (mark,) = read_marks(path)
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    assert (mark.sample_id, mark.other, mark.given) == (name, other, label)
    for row in csv.reader(io.StringIO(text, newline="")):
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)


def test_findings_are_a_frame_with_the_columns_of_the_table(planted, tmp_path):
    pandas = pytest.importorskip("pandas")
    report = audit(planted[0])
    frame = report.to_frame()
    write_findings(report, tmp_path / "audit.csv")
    read = pandas.read_csv(tmp_path / "audit.csv", keep_default_na=False)
    assert list(frame.columns) == list(read.columns)
    assert list(frame["sample_id"]) == list(read["sample_id"])
    assert frame["score"].dtype == float
    assert list(frame["likely"]) == [each.likely for each in report.findings]


def test_labels_of_any_container_give_the_same_findings(planted, tmp_path):
    pandas = pytest.importorskip("pandas")
    path, _, labels = planted
    expected = audit(path).findings
    names = [NAMES[label] for label in labels]
    others = write_cache(tmp_path / "b.h5", **far_apart() | {"labels": np.zeros(240, int)})
    for given_labels in (
        *(names, tuple(names), np.array(names), np.array(names, object), labels, labels.tolist()),
        *(pandas.Series(names), pandas.Series(names, dtype="category"), pandas.Index(names)),
    ):
        assert audit(path, labels=given_labels).findings == expected
    found = audit(others, labels=names)
    assert [each.sample_id for each in found.of_kind("label")] == [
        each.sample_id for each in expected if each.kind == "label"
    ]
    named = ["cat" if name == "ant" else name for name in names]  # a new class
    assert {each.given for each in audit(path, labels=named).findings} <= {"cat", "bee", "wasp"}
    partly = pandas.Series([None, *names[1:]])
    assert audit(path, labels=partly).num_evaluated == len(names) - 1


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ("ant", "type str"),
        (np.zeros((240, 3)), r"shape \(240, 3\)"),
        ([b"ant"] * 240, "type bytes"),
        ([0.5] * 240, "type float"),
        (["ant"] * 3, "3 values"),
        ([9] * 240, "3 classes"),
    ],
)
def test_labels_of_another_type_are_named(planted, labels, text):
    with pytest.raises(ConfigError, match=text):
        audit(planted[0], labels=labels)
