"""What is to be done: never a wrong row, never the same work twice."""

from __future__ import annotations

import itertools
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from feature_files import as_version_2, fake_source, fill, plan_of, publish_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.extraction.plan import is_current, keep_touched, make_plan, num_relabelled
from featx.features.file import FeatureFile, open_features
from featx.features.journal import Journal
from featx.features.publish import ExistingRows
from featx.features.records import RowLayout
from featx.features.skipped import SkippedImage
from featx.images.decode import content_digest
from featx.images.sources import NEVER_CHANGES, NO_FILE, Sample, Stamp, group_numbers

NUM_FEATURES = 4
TRAIN, VAL = 0, 1


# --- any history of a source --------------------------------------------------------------------


class Seen(NamedTuple):
    """What is known of an image: its file's stamp, what was in it, and whether it has a row."""

    stamp: Stamp
    content: bytes | None
    has_row: bool


@dataclass
class Model:
    """What a user does to a folder, and what is known of it afterwards.

    Attributes:
        source: The folder.
        in_file, in_log: What was seen of each image, the oldest first.
        num_batches: Of the log, that were seen.
    """

    source: Any
    clock: itertools.count[int] = field(default_factory=lambda: itertools.count(10_000))
    in_file: dict[str, list[Seen]] = field(default_factory=dict)
    in_log: dict[str, list[Seen]] = field(default_factory=dict)
    num_batches: int = 0

    def apply(self, name: str, number: int, content: bytes) -> None:  # noqa: PLR0912 a case each
        files, now = self.source.files, next(self.clock)
        chosen = list(files)[number % len(files)]
        old, stamp = files[chosen]
        match name:
            case "add":
                files[f"new {now}"] = (content, Stamp(len(content), now, now))
            case "change":
                files[chosen] = (content, Stamp(len(content), now, now))
            case "touch" if old is not None:
                files[chosen] = (old, stamp._replace(mtime_ns=now, ctime_ns=now))
            case "chmod" if old is not None:
                files[chosen] = (old, stamp._replace(ctime_ns=now))
            case "vanish":
                files[chosen] = (None, NO_FILE)
            case "relabel":
                self.source.labels[chosen] = number % 3
            case "reorder":
                names = sorted(files, key=lambda name: zlib.crc32(f"{name} {number}".encode()))
                self.source.files = {name: files[name] for name in names}
            case "rename":
                files[f"renamed {now}"] = files.pop(chosen)
            case "swap":  # by three renames, of files with one time
                other = list(files)[-1]
                for one, two in ((chosen, files[other]), (other, files[chosen])):
                    stamp_ = two[1] if two[0] is None else Stamp(len(two[0]), 7, now)
                    files[one] = (two[0], stamp_)
            case "unpack":  # all at once, and within one tick of the clock
                for name_, (content_, _) in files.items():
                    if content_ is not None:
                        files[name_] = (content_, Stamp(len(content_), 7, now))
            case "exchange folders":  # which leaves what is in them as it is
                other = list(files)[-1]
                files[chosen], files[other] = files[other], files[chosen]
            case "remove" if len(files) > 1:
                del files[chosen]

    def must_not_be_done(self, *, verify: bool = False) -> set[str]:
        """Images that are known as they are: by content, or by the error where there is none.

        Bad ones are tried again where content is verified.
        """
        free = set()
        for name, (content, _) in self.source.files.items():
            seen = [*self.in_file.get(name, []), *self.in_log.get(name, [])]
            read = [each for each in seen if each.content is not None]
            if content is None:
                is_known = bool(seen) and not read
            else:
                is_known = bool(read) and read[-1].content == content
                is_known &= not verify or (is_known and read[-1].has_row)
            if is_known:
                free.add(name)
        return free

    def may_be_kept(self) -> set[str]:
        """And those of which anything older is known that they are again."""
        return self.must_not_be_done() | {
            name
            for name, (content, _) in self.source.files.items()
            for seen in (*self.in_file.get(name, []), *self.in_log.get(name, []))
            if seen.content == content
        }

    def learn_from_log(self, journal: Journal) -> None:
        batches = list(journal.batches())
        for batch in batches[self.num_batches :]:
            for name, has_row in zip(batch.sample_ids, batch.has_row.tolist(), strict=True):
                content, stamp = self.source.files[name]
                self.in_log.setdefault(name, []).append(Seen(stamp, content, has_row))
        self.num_batches = len(batches)

    def learn_from_file(self, file: FeatureFile) -> None:
        names = set(file.sample_ids)
        assert names | {image.sample_id for image in file.skipped} == set(self.source.files)
        self.in_log, self.num_batches = {}, 0
        self.in_file = {
            name: [Seen(stamp, content, name in names)]
            for name, (content, stamp) in self.source.files.items()
        }


contents_ = st.sampled_from([b"1", b"2", b"33", b"44", b"bad", b"badly"])
operations = st.tuples(
    st.sampled_from(
        [
            *("add", "change", "touch", "chmod", "vanish", "relabel", "reorder", "remove"),
            *("rename", "swap", "unpack", "exchange folders"),
        ]
    ),
    st.integers(0, 20),
    contents_,
)
phases = st.tuples(
    st.lists(operations, max_size=5),
    st.one_of(st.none(), st.integers(0, 2)),  # batches until it is interrupted
    st.booleans(),  # verify content
)


@settings(max_examples=50, deadline=None)
@given(first=st.lists(contents_, min_size=1, max_size=7), history=st.lists(phases, max_size=5))
def test_after_any_history_the_file_is_that_of_a_run_from_scratch(first, history):
    source = fake_source({f"{i}": content for i, content in enumerate(first)})
    model = Model(source)
    with tempfile.TemporaryDirectory() as folder:
        path, scratch = Path(folder) / "f.h5", Path(folder) / "scratch.h5"
        for changes, stop_after, verify in [([], None, False), *history, ([], None, False)]:
            for change in changes:
                model.apply(*change)
            model.apply("add", 0, b"0")  # so that one can be used
            file = open_features(path) if path.exists() else None
            with Journal(path, layout=RowLayout((NUM_FEATURES,))) as journal:
                known = ExistingRows(file, journal)
                plan = plan_of(source, known, verify_content=verify)
                names, todo = list(source.files), {list(source.files)[i] for i in plan.todo()}
                assert todo.isdisjoint(model.must_not_be_done(verify=verify))
                assert todo | model.may_be_kept() >= set(names)
                assert plan.num_removed == len(model.in_file.keys() - set(names))
                finished = False
                with suppress(KeyboardInterrupt):
                    done = fill(source, known, plan, batch_size=2, stop_after=stop_after)
                    assert set(done) == todo
                    finished = True
                model.learn_from_log(journal)
                if not finished:
                    continue
                publish_plan(path, source, known, plan)
                journal.remove()
            with Journal(scratch, layout=RowLayout((NUM_FEATURES,))) as journal:
                known = ExistingRows(None, journal)
                plan = plan_of(source, known)
                fill(source, known, plan, batch_size=3)
                publish_plan(scratch, source, known, plan)
                journal.remove()
            assert path.read_bytes() == scratch.read_bytes()
            opened = open_features(path)
            model.learn_from_file(opened)
            assert is_current(opened, plan_for(source, opened), source.samples, source.classes)


# --- one thing after the other ------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., tuple[Any, FeatureFile]]:
    """Publish a source's rows; return the source and the file."""

    def make(contents: dict[str, bytes | None], stamps: Any = None) -> tuple[Any, FeatureFile]:
        source, path = fake_source(contents), tmp_path / "f.h5"
        source.files |= stamps or {}
        with Journal(path, layout=RowLayout((NUM_FEATURES,))) as journal:
            known = ExistingRows(None, journal)
            plan = plan_of(source, known)
            fill(source, known, plan)
            publish_plan(path, source, known, plan)
            journal.remove()
        source.num_read = 0
        return source, open_features(path)

    return make


def plan_for(source: Any, file: FeatureFile, **options: Any) -> Any:
    return make_plan(source, ExistingRows(file, EMPTY).images(), file, workers=1, **options)


EMPTY = Journal(Path("nowhere"), layout=RowLayout((NUM_FEATURES,)))


def touch(source: Any, name: str, by: int = 10**9) -> None:
    content, stamp = source.files[name]
    source.files[name] = (
        content,
        stamp._replace(mtime_ns=stamp.mtime_ns + by, ctime_ns=stamp.ctime_ns + by),
    )


def test_what_is_as_it_was_is_not_even_read(made):
    source, file = made({"a": b"1", "b": b"bad", "c": None, "d": b"4"})
    plan = plan_for(source, file)
    assert source.num_read == 1  # the one that could not be read
    assert plan.rows.tolist() == [0, -1, -1, 1]
    assert plan.skipped == {
        1: SkippedImage("b", "it is bad", source.stamp(1), content_digest(b"bad")),
        2: SkippedImage("c", "does not exist.", NO_FILE),
    }
    assert plan.todo().tolist() == []
    assert (plan.num_new, plan.num_changed, plan.num_removed) == (0, 0, 0)
    assert is_current(file, plan, source.samples, source.classes)


@pytest.mark.parametrize("changes", [{"mtime_ns": 5}, {"ctime_ns": 5}, {"mtime_ns": 2**62}])
def test_another_time_with_the_same_content_is_read_once(made, changes):
    source, file = made({"a": b"1", "b": b"2"})
    content, stamp = source.files["b"]
    source.files["b"] = (content, stamp._replace(**changes))
    plan = plan_for(source, file)
    assert source.num_read == 1
    assert plan.touched.tolist() == [1]
    assert plan.rows.tolist() == [0, 1]
    assert plan.stamps.tolist() == [list(source.stamp(i)) for i in (0, 1)]
    assert plan.todo().tolist() == []
    assert plan.num_changed == 0
    assert not is_current(file, plan, source.samples, source.classes)


def test_another_content_is_to_be_done(made):
    source, file = made({"a": b"1", "b": b"2"})
    source.files["a"] = (b"9", source.files["a"][1]._replace(mtime_ns=5, ctime_ns=5))
    plan = plan_for(source, file)
    assert plan.todo().tolist() == [0]
    assert (plan.num_new, plan.num_changed, plan.num_removed) == (0, 1, 0)


def test_another_content_behind_the_same_stamp_takes_reading_all(made):
    source, file = made({"a": b"1", "b": b"2", "c": b"bad"})
    source.files["a"] = (b"9", source.files["a"][1])
    assert plan_for(source, file).todo().tolist() == []
    plan = plan_for(source, file, verify_content=True)
    assert source.num_read == 2
    assert plan.todo().tolist() == [0, 2]  # the bad one is tried again
    assert plan.rows.tolist() == [-1, 1, -1]
    assert plan.num_changed == 2


def test_a_bad_image_is_tried_again_when_its_content_changed(made):
    source, file = made({"a": b"1", "b": b"bad"})
    source.files["b"] = (b"bda", source.files["b"][1]._replace(ctime_ns=1))
    plan = plan_for(source, file)
    assert plan.todo().tolist() == [1]
    assert plan.num_changed == 1


def test_a_bad_image_of_another_time_is_read_not_decoded(made):
    source, file = made({"a": b"1", "b": b"bad"})
    touch(source, "b")
    plan = plan_for(source, file)
    assert source.num_read == 1
    assert plan.todo().tolist() == []
    assert plan.num_changed == 0
    assert plan.skipped[1].stamp == source.stamp(1)
    assert not is_current(file, plan, source.samples, source.classes)  # the stamp is to be noted


def test_an_image_that_could_not_be_read_is_tried_again_whatever_its_stamp(made):
    source, file = made({"a": b"1", "b": None, "c": None})
    source.files["b"] = (b"2", NO_FILE)
    plan = plan_for(source, file)
    assert source.num_read == 2
    assert plan.todo().tolist() == [1]
    assert list(plan.skipped) == [2]


def test_files_of_one_stamp_that_trade_places_are_told_apart(made):
    source, file = made({"a": b"1", "b": b"2", "c": b"3"})
    same = {name: (content, Stamp(1, 7, 7)) for name, (content, _) in source.files.items()}
    same["d"], same["e"] = (b"4", Stamp(1, 8, 8)), (b"4", Stamp(1, 8, 8))  # links to one file
    source, file = made({name: content for name, (content, _) in same.items()}, stamps=same)
    plan = plan_for(source, file)
    assert source.num_read == 3
    assert is_current(file, plan, source.samples, source.classes)
    source.files["a"], source.files["b"] = same["b"], same["a"]
    assert plan_for(source, file).todo().tolist() == [0, 1]
    del source.files["b"]
    assert plan_for(source, file).todo().tolist() == [0]


def test_images_without_files_have_one_stamp_and_are_not_read(made):
    names = {name: (name.encode(), NEVER_CHANGES) for name in "abc"}
    source, file = made({name: content for name, (content, _) in names.items()}, stamps=names)
    plan = plan_for(source, file)
    assert source.num_read == 0
    assert is_current(file, plan, source.samples, source.classes)


def test_a_row_of_a_file_that_could_not_be_looked_up_is_compared(made):
    names = {"a": (b"1", NO_FILE)}  # it came between the two
    source, file = made({"a": b"1"}, stamps=names)
    plan = plan_for(source, file)
    assert source.num_read == 1
    assert (plan.touched.tolist(), plan.rows.tolist()) == ([], [0])


def test_without_change_times_every_image_is_read_once(made):
    source, file = made({"a": b"1", "b": b"2", "c": b"bad"})
    as_version_2(file.path)
    old = open_features(file.path)
    plan = plan_for(source, old)
    assert source.num_read == 3
    assert plan.touched.tolist() == [0, 1]
    assert plan.todo().tolist() == [2]  # no content hash says that it is as it was


def test_other_groups_are_to_be_written(made):
    source, file = made({"a": b"1", "b": b"2"})
    plan = plan_for(source, file)
    samples = [replace(sample, group="patient 7") for sample in source.samples]
    assert not is_current(file, plan, samples, source.classes)


def test_an_image_that_cannot_be_read_any_more_is_to_be_done(made):
    source, file = made({"a": b"1", "b": b"2"})
    source.files["a"] = (None, NO_FILE)
    for verify in (False, True):
        plan = plan_for(source, file, verify_content=verify)
        assert plan.todo().tolist() == [0]
        assert plan.num_changed == 1


def test_removed_images_are_counted_bad_ones_too(made):
    source, file = made({"a": b"1", "b": b"bad", "c": b"3", "d": b"4"})
    for name in ("a", "b"):
        del source.files[name]
    plan = plan_for(source, file)
    assert plan.num_removed == 2
    assert plan.rows.tolist() == [1, 2]
    assert not is_current(file, plan, source.samples, source.classes)


def test_order_labels_and_classes_are_compared(made):
    source, file = made({"a": b"1", "b": b"2", "c": b"3"})
    assert num_relabelled(file, plan_for(source, file).rows, source.samples, source.classes) == 0
    source.labels["b"] = 2
    plan = plan_for(source, file)
    assert num_relabelled(file, plan.rows, source.samples, source.classes) == 1
    assert not is_current(file, plan, source.samples, source.classes)
    source.labels["b"] = 0
    source.files = dict(reversed(source.files.items()))
    plan = plan_for(source, file)
    assert plan.rows.tolist() == [2, 1, 0]
    assert num_relabelled(file, plan.rows, source.samples, source.classes) == 0
    assert not is_current(file, plan, source.samples, source.classes)


def test_the_splits_that_the_source_gives_are_compared(made):
    source, file = made({"a": b"1", "b": b"2", "c": b"3"})
    file = replace(file, splits=np.array([TRAIN, VAL, TRAIN], np.uint8))
    rows, classes = plan_for(source, file).rows, source.classes
    assert num_relabelled(file, rows, source.samples, classes) == 0  # b: featx's own validation
    chosen = np.array([VAL, TRAIN, TRAIN], np.uint8)
    assert num_relabelled(file, rows, source.samples, classes, splits=chosen) == 2
    samples = [replace(source.samples[0], split="test"), *source.samples[1:]]
    assert num_relabelled(file, rows, samples, classes) == 1
    samples[2] = replace(samples[2], split="val")
    assert num_relabelled(file, rows, samples, classes) == 3  # now b is for training


@pytest.mark.parametrize(
    ("before", "after", "count"),
    [
        ("....", "....", 0),
        ("aabb", "bbaa", 0),  # the names of groups do not matter
        ("aa.b", "cc.d", 0),
        ("aabb", "aaaa", 4),
        ("aaaa", "aabb", 4),
        ("aab.", "aabb", 2),
        ("..bb", "aabb", 2),
        ("aabb", "....", 4),
    ],
)
def test_groups_are_compared_by_who_is_in_them(made, before, after, count):
    source, file = made({name: name.encode() for name in "wxyz"})

    def grouped(groups: str) -> list[Sample]:
        pairs = zip(source.samples, groups.replace(".", " "), strict=True)
        return [replace(sample, group=group.strip()) for sample, group in pairs]

    file = replace(file, groups=group_numbers(grouped(before)))
    plan = plan_for(source, file)
    assert num_relabelled(file, plan.rows, grouped(after), source.classes) == count
    assert is_current(file, plan, grouped(after), source.classes) == (count == 0)


def test_labels_are_compared_by_name(made):
    """A class that comes before all others changes every index and no label."""
    source, file = made({"a": b"1", "b": b"2"})
    source.labels |= {"a": 1, "b": 1}
    classes = ("aardvark", *source.classes)
    plan = plan_for(source, file)
    assert num_relabelled(file, plan.rows, source.samples, classes) == 0
    assert not is_current(file, plan, source.samples, classes)  # the indices are to be written
    source.labels["b"] = -1
    assert num_relabelled(file, plan.rows, source.samples, classes) == 1


def test_the_log_is_kept_beside_the_file(made, tmp_path):
    source, file = made({"a": b"1", "b": b"2"})
    source.files |= {"c": (b"3", Stamp(1, 1, 1)), "d": (b"bad", Stamp(3, 2, 2))}
    with Journal(tmp_path / "f.h5", layout=RowLayout((NUM_FEATURES,))) as journal:
        known = ExistingRows(file, journal)
        assert fill(source, known, plan_of(source, known)) == ["c", "d"]
        plan = plan_of(source, known)
    assert plan.rows.tolist() == [0, 1, 2, -1]
    assert list(plan.skipped) == [3]
    assert plan.todo().tolist() == []
    assert (plan.num_new, plan.num_changed, plan.num_removed) == (0, 0, 0)


def test_a_bad_image_that_only_the_log_knows_is_news(made, tmp_path):
    source, file = made({"a": b"1"})
    source.files["b"] = (b"bad", Stamp(3, 2, 2))
    with Journal(tmp_path / "f.h5", layout=RowLayout((NUM_FEATURES,))) as journal:
        known = ExistingRows(file, journal)
        fill(source, known, plan_of(source, known))
        plan = plan_of(source, known)
    assert not is_current(file, plan, source.samples, source.classes)


# --- touched images -----------------------------------------------------------------------------


def test_touched_rows_are_noted_with_their_new_stamps(made, tmp_path):
    source, file = made({f"{i}": bytes([i]) for i in range(5)})
    for name in ("1", "3"):
        touch(source, name)
    with Journal(tmp_path / "f.h5", layout=RowLayout((NUM_FEATURES,))) as journal:
        journal.begin({})
        known = ExistingRows(file, journal)
        plan = plan_of(source, known)
        keep_touched(plan, source, known)
        assert plan.rows.tolist() == [0, 5, 2, 6, 4]
        assert not len(plan.touched)
        with known.reading() as rows_at:
            block = rows_at(np.array([5, 6]))
        assert np.array_equal(block.features, file.features[[1, 3]])
        assert np.array_equal(block.digests, file.digests[[1, 3]])
        assert block.stamps.tolist() == [list(source.stamp(i)) for i in (1, 3)]
        source.num_read = 0
        again = plan_of(source, known)
    assert source.num_read == 0  # now it is known without reading
    assert again.rows.tolist() == [0, 5, 2, 6, 4]


def test_nothing_touched_writes_nothing(made, tmp_path):
    source, file = made({"a": b"1"})
    with Journal(tmp_path / "f.h5", layout=RowLayout((NUM_FEATURES,))) as journal:
        known = ExistingRows(file, journal)
        keep_touched(plan_of(source, known), source, known)
    assert not (tmp_path / "f.h5.partial").exists()


def test_a_file_that_changes_right_after_it_was_compared_is_seen_next_time(made, tmp_path):
    source, file = made({"a": b"1", "b": b"2"})
    touch(source, "b")
    with Journal(tmp_path / "f.h5", layout=RowLayout((NUM_FEATURES,))) as journal:
        journal.begin({})
        known = ExistingRows(file, journal)
        plan = plan_of(source, known)  # reads b and finds it the same
        source.files["b"] = (b"9", Stamp(1, 77, 77))
        keep_touched(plan, source, known)
        assert plan_of(source, known).todo().tolist() == [1]


def test_a_touched_image_is_compared_with_its_newest_row(made, tmp_path):
    source, file = made({"a": b"1", "b": b"2"})
    source.files["b"] = (b"9", Stamp(1, 77, 77))
    with Journal(tmp_path / "f.h5", layout=RowLayout((NUM_FEATURES,))) as journal:
        known = ExistingRows(file, journal)
        fill(source, known, plan_of(source, known))
        touch(source, "b")
        assert plan_of(source, known).todo().tolist() == []
