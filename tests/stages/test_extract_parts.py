"""Extraction in parts: the same bytes as one extraction, whatever happens to a part."""

from __future__ import annotations

import csv
import json
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import featx_cli

import featx
from featx.errors import (
    ArtifactError,
    ArtifactIncomplete,
    ArtifactInvalid,
    ArtifactMismatch,
    ConfigError,
)
from featx.extraction.options import ExtractOptions
from featx.features.file import open_features
from featx.features.parts import read_index, read_plan
from featx.images.sources import open_source
from featx.images.sources.selection import RangeSource, select
from featx.stages.check import check
from featx.stages.extract import extract, extract_layers
from featx.stages.merge import merge_parts
from featx.stages.train import train_head

TINY = ExtractOptions(backbone="tiny", on_error="skip")
OPTIONS = ("-b", "tiny", "--on-error", "skip")


@pytest.fixture
def source(photos) -> Path:
    """Images with copies in the same part and in others, and two that cannot be used."""
    folder = photos({"ants": 14, "bees": 14})
    for name, other in {"ants/004.jpg": "ants/zz.jpg", "ants/003.jpg": "bees/a.jpg"}.items():
        shutil.copy(folder / name, folder / other)
    shutil.copy(folder / "ants/003.jpg", folder / "bees/b.jpg")
    (folder / "ants/bad.jpg").write_bytes(b"nothing")
    (folder / "bees/bad.jpg").write_bytes(b"nothing")
    return folder


def extract_parts(source: Path | None, folder: Path, count: int, options: ExtractOptions = TINY):
    return [
        extract(source, folder, replace(options, part=f"{number}/{count}"))
        for number in range(1, count + 1)
    ]


def one_file(source: Path, tmp_path: Path, options: ExtractOptions = TINY) -> bytes:
    path = tmp_path / "one.h5"
    extract(source, path, options)
    return path.read_bytes()


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_merged_parts_are_the_bytes_of_one_extraction(source, tmp_path, order):
    folder, merged = tmp_path / "big.parts", tmp_path / "merged.h5"
    reports = [extract(source, folder, replace(TINY, part=f"{n}/3")) for n in order]
    assert [report.part for report in reports] == [(n, 3) for n in order]
    assert [len(report.missing_parts) for report in reports] == [2, 1, 0]
    report = merge_parts(folder, merged)
    assert merged.read_bytes() == one_file(source, tmp_path)
    assert (report.num_parts, report.num_images, report.num_copies) == (3, 31, 3)


@pytest.mark.parametrize(
    "options",
    [
        replace(TINY, dtype="float16", val_fraction=0.4),
        replace(TINY, cut="stage3", engine="torch", workers=1, views=2),
        replace(TINY, engine="torch", workers=1, views=2),
        replace(TINY, cut="input"),
    ],
    ids=["float16", "maps with views", "vectors with views", "pixels"],
)
def test_whatever_is_stored_merges_to_the_bytes_of_one_extraction(source, tmp_path, options):
    folder, merged = tmp_path / "big.parts", tmp_path / "merged.h5"
    extract_parts(source, folder, 3, options)
    merge_parts(folder, merged)
    assert merged.read_bytes() == one_file(source, tmp_path, options)
    one, parts = open_features(merged), open_features(folder)
    if options.cut is None:
        assert np.array_equal(parts.view_features, one.view_features)


def test_int8_ranges_of_the_first_part_are_those_of_the_whole_source(source, tmp_path):
    options = replace(TINY, precision="int8")
    folder, merged = tmp_path / "big.parts", tmp_path / "merged.h5"
    extract_parts(source, folder, 3, options)
    merge_parts(folder, merged)
    assert merged.read_bytes() == one_file(source, tmp_path, options)


@pytest.mark.parametrize("splits", [("train",), ("train", "val", "test")])
def test_groups_and_splits_of_a_table_hold_across_parts(source, tmp_path, splits):
    images = sorted(path for path in source.rglob("*.*") if path.stem != "bad")
    table = tmp_path / "images.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split", "group"])
        for number, path in enumerate(images):
            group = f"g{number % 7}" if number % 3 else ""
            rows.writerow([path, path.parent.name, splits[number % len(splits)], group])
    table.write_text(table.read_text() + f"{source / 'ants/bad.jpg'},ants,train,g9\n")
    folder, merged = tmp_path / "big.parts", tmp_path / "merged.h5"
    extract_parts(table, folder, 4)
    merge_parts(folder, merged)
    assert merged.read_bytes() == one_file(table, tmp_path)
    assert np.array_equal(open_features(folder).groups, open_features(merged).groups)


def test_readers_take_parts_like_the_file_made_of_them(source, tmp_path):
    folder, merged = tmp_path / "big.parts", tmp_path / "merged.h5"
    extract_parts(source, folder, 3)
    merge_parts(folder, merged)
    parts, one = open_features(folder), open_features(merged)
    for name in ("labels", "splits", "digests", "stamps", "groups", "features"):
        assert np.array_equal(getattr(parts, name), getattr(one, name)), name
    assert list(parts.sample_ids) == list(one.sample_ids)
    assert parts.sample_ids == one.sample_ids
    assert parts.sample_ids[-1] == one.sample_ids[-1]
    assert parts.sample_ids[7:9] == one.sample_ids[7:9]
    assert parts.skipped == one.skipped
    with parts.reading() as rows_at:
        rows = np.array([30, 2, 17, 11, 0])
        assert np.array_equal(rows_at(rows), one.features[rows])
    assert "31 images" in str(parts)


@pytest.mark.parametrize("memory", [None, 20_000])
def test_a_head_trained_on_parts_is_that_of_the_merged_file(photos, tmp_path, memory):
    folder, merged = tmp_path / "big.parts", tmp_path / "merged.h5"
    source = photos({"ants": 150, "bees": 150})
    options = replace(TINY, image_size=8, resize=8)
    extract_parts(source, folder, 3, options)
    merge_parts(folder, merged)
    heads = []
    for path in (folder, merged):
        train_head(path, tmp_path / "head.safetensors", memory=memory, strengths=(1.0,))
        heads.append(featx.open_head(tmp_path / "head.safetensors"))
    for ours, theirs in zip(*(head.layers for head in heads), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert check(tmp_path / "head.safetensors", folder).is_fresh


def test_a_part_run_again_changes_no_byte(source, tmp_path):
    folder = tmp_path / "big.parts"
    extract_parts(source, folder, 3)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    for number in (1, 2, 3):
        assert extract(None, folder, part=f"{number}/3").is_unchanged
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()} == before
    assert {path.name for path in before} == {
        "plan.json",
        "index.json",
        read_index(folder).settled,
        *(f"part-0000{n}.h5" for n in (1, 2, 3)),
    }


def test_other_counts_plans_and_settings_are_refused_before_any_work(source, tmp_path, photos):
    folder = tmp_path / "big.parts"
    extract(source, folder, replace(TINY, part="1/3"))
    before = sorted(folder.iterdir())
    for change, words in {
        "part": (r"begun with 3 parts, and this is one of 8", {"part": "2/8"}),
        "backbone": ("begun with backbone 'tiny'", {"part": "2/3", "backbone": "resnet18"}),
        "size": ("other settings", {"part": "2/3", "image_size": 16, "resize": 16}),
        "fraction": ("val_fraction: expected 0.5", {"part": "2/3", "val_fraction": 0.5}),
    }.values():
        with pytest.raises(ArtifactMismatch, match=change):
            extract(source, folder, replace(TINY, **words))
    shutil.copy(source / "ants/001.jpg", source / "ants/later.jpg")
    with pytest.raises(ArtifactMismatch, match="other images"):
        extract(source, folder, replace(TINY, part="2/3"))
    (source / "ants/later.jpg").unlink()
    (source / "ants").rename(source / "cats")
    with pytest.raises(ArtifactMismatch, match="other images"):
        extract(source, folder, replace(TINY, part="2/3"))
    with pytest.raises(ArtifactMismatch, match="other source"):
        extract(photos(name="others"), folder, replace(TINY, part="2/3"))
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("0/16", "numbers 1 to 16, not 0 to 15"),
        ("17/16", "numbers 1 to 16, not 0 to 15"),
        ("3", "NUMBER/COUNT"),
        ("-1/4", "NUMBER/COUNT"),
        ("1/0", "1 to 512 parts"),
        ("1/513", "1 to 512 parts"),
        ("1/40", "at most 33 parts"),
    ],
)
def test_impossible_parts_are_refused_with_the_numbering(source, tmp_path, part, words):
    with pytest.raises(ConfigError, match=words):
        extract(source, tmp_path / "big.parts", replace(TINY, part=part))
    assert not (tmp_path / "big.parts").exists()


def test_outputs_are_named_for_what_they_are(source, tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.parts"):
        extract(source, tmp_path / "big.h5", replace(TINY, part="1/3"))
    with pytest.raises(ConfigError, match="folder of parts"):
        extract(source, tmp_path / "big.parts", TINY)
    outputs = {"penultimate": tmp_path / "a.h5", "stage3": tmp_path / "b.h5"}
    with pytest.raises(ConfigError, match="several layers"):
        extract_layers(source, outputs, replace(TINY, part="1/3"))
    extract_parts(source, tmp_path / "big.parts", 2)
    with pytest.raises(ConfigError, match="one file"):
        merge_parts(tmp_path / "big.parts", tmp_path / "other.parts")
    with pytest.raises(ConfigError):
        merge_parts(tmp_path / "big.parts", tmp_path / "big.parts/part-00001.h5", overwrite=True)


def test_missing_parts_are_named_by_every_reader(source, tmp_path):
    folder = tmp_path / "big.parts"
    extract_parts(source, folder, 4)
    (folder / "part-00003.h5").unlink()
    for read in (open_features, check, merge_parts):
        with pytest.raises(ArtifactIncomplete, match="3 of 4 parts; missing: part 3"):
            read(folder)
    with pytest.raises(ArtifactIncomplete, match="missing: part 3"):
        train_head(folder, tmp_path / "head.safetensors")
    assert extract(None, folder, part="3/4").missing_parts == ()
    assert check(folder).is_fresh


def test_readers_refuse_parts_without_an_index_or_with_an_older_one(source, tmp_path):
    folder = tmp_path / "big.parts"
    extract_parts(source, folder, 3)
    index = (folder / "index.json").read_bytes()
    (folder / "index.json").unlink()
    with pytest.raises(ArtifactIncomplete, match="no index"):
        open_features(folder)
    merge_parts(folder)
    assert (folder / "index.json").read_bytes() == index
    shutil.copy(source / "bees/000.jpg", source / "ants/000.jpg")
    extract(None, folder, part="1/3")
    assert (folder / "index.json").read_bytes() != index
    (folder / "index.json").write_bytes(index)
    with pytest.raises(ArtifactIncomplete, match=r"part-00001\.h5' .* has changed"):
        open_features(folder)


def test_a_part_of_another_folder_is_refused_by_name(source, tmp_path):
    ours, theirs = tmp_path / "a.parts", tmp_path / "b.parts"
    extract_parts(source, ours, 3)
    extract_parts(source, theirs, 3, replace(TINY, dtype="float16"))
    shutil.copy(theirs / "part-00002.h5", ours / "part-00002.h5")
    with pytest.raises(ArtifactMismatch, match=r"part-00002\.h5' does not belong .* dtype"):
        merge_parts(ours)
    shutil.copy(ours / "part-00003.h5", ours / "part-00002.h5")
    with pytest.raises(ArtifactMismatch, match=r"part-00002\.h5' .* not part 2"):
        merge_parts(ours)


@pytest.mark.parametrize("name", ["index.json", "plan.json", "part-00002.h5", "settled"])
def test_damage_is_noticed_wherever_it_is(source, tmp_path, name):
    folder = tmp_path / "big.parts"
    extract_parts(source, folder, 3)
    path = folder / (read_index(folder).settled if name == "settled" else name)
    content = bytearray(path.read_bytes())
    place = len(content) // 2
    if path.suffix == ".h5":
        place = content.index(open_features(path).features[5].tobytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        open_features(folder)
    with pytest.raises(ArtifactError):
        check(folder)


def test_a_full_disk_leaves_the_former_index_and_a_way_on(source, tmp_path, monkeypatch):
    folder = tmp_path / "big.parts"
    extract_parts(source, folder, 3)
    index = (folder / "index.json").read_bytes()
    one = open_features(folder)
    (folder / "part-00001.h5").unlink()
    shutil.copy(source / "bees/000.jpg", source / "ants/000.jpg")

    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for failing in ("open", "write_text"):
        with monkeypatch.context() as patched:
            name = {"open": "settled", "write_text": "index"}[failing]
            own = getattr(Path, failing)
            patched.setattr(
                Path,
                failing,
                lambda self, *a, own=own, name=name, **k: (
                    full(self) if self.name.startswith(f".{name}") else own(self, *a, **k)
                ),
            )
            with pytest.raises(ArtifactError, match="No space left"):
                extract(None, folder, part="1/3")
        assert (folder / "index.json").read_bytes() == index
        assert not list(folder.glob(".*"))
    extract(None, folder, part="1/3")
    assert len(open_features(folder)) == len(one)


def test_merging_again_changes_nothing_and_replaces_nothing_else(source, tmp_path):
    folder, merged = tmp_path / "big.parts", tmp_path / "merged.h5"
    extract_parts(source, folder, 3)
    merge_parts(folder, merged)
    before = merged.stat().st_mtime_ns
    assert merge_parts(folder, merged).is_unchanged
    assert merged.stat().st_mtime_ns == before
    extract(source / "ants", tmp_path / "other.h5", TINY)
    with pytest.raises(ArtifactError, match="exists"):
        merge_parts(folder, tmp_path / "other.h5")
    merge_parts(folder, tmp_path / "other.h5", overwrite=True)
    assert (tmp_path / "other.h5").read_bytes() == merged.read_bytes()


def test_a_part_of_which_images_cannot_be_used_is_named(source, tmp_path):
    done = featx_cli("extract", source, "-b", "tiny", "-o", tmp_path / "a.parts", "--part", "1/2")
    assert done.exit_code == 1
    assert "Part 1/2: 1 of 16 images" in done.output


def test_a_part_writes_nothing_beside_its_folder(source, tmp_path):
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    done = featx_cli("extract", source, *OPTIONS, "-o", tmp_path / "a.parts", "--part", "1/2")
    assert done.exit_code == 0
    made = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert {path.parent.name for path in made} == {"a.parts"}
    assert {path.name for path in made} == {"plan.json", "part-00001.h5"}


def test_the_command_line_tells_how_far_the_parts_are(source, tmp_path):
    folder = tmp_path / "a.parts"
    options = ("-b", "tiny", "--on-error", "skip", "-o", folder)
    first = featx_cli("extract", source, *options, "--part", "1/3")
    assert "1 of 3" in first.output
    assert "missing" in first.output
    assert "parts 2-3" in first.output
    assert "--part 2/3" in featx_cli("check", folder).output
    featx_cli("extract", "-o", folder, "--part", "2/3")
    last = featx_cli("extract", "-o", folder, "--part", "3/3")
    assert f"featx train-head {folder}" in last.output
    assert featx_cli("check", folder).exit_code == 0
    assert "31 × 192" in featx_cli("info", folder).output
    assert "features, 3 parts, " in featx_cli("info", folder).output
    assert "3 parts, 31 images" in featx_cli("merge", folder).output
    assert "--part 0/3" in featx_cli("extract", "-o", folder, "--part", "0/3").output


def test_all_parts_are_made_by_one_command(source, tmp_path):
    folder, options = tmp_path / "a.parts", ("-b", "tiny", "--on-error", "skip")
    done = featx_cli("extract", source, *options, "-o", folder, "--parts", "3")
    assert done.exit_code == 0, done.output
    assert "part 3 of 3  16 images, written" in done.output
    assert f"featx train-head {folder}" in done.output
    merge_parts(folder, tmp_path / "merged.h5")
    assert (tmp_path / "merged.h5").read_bytes() == one_file(source, tmp_path)
    again = featx_cli("extract", "-o", folder, "--parts", "3", "--json")
    assert [each["is_unchanged"] for each in json.loads(again.stdout)] == [True] * 3
    assert "--parts 0/0" not in featx_cli("extract", "-o", folder, "--parts", "0").output
    for more in (("--part", "1/3"), ("--layer", "stage2", "--layer", "stage3")):
        refused = featx_cli("extract", source, "-o", folder, "--parts", "3", *more)
        assert refused.exit_code == 2
        assert more[0] in refused.output


def test_run_refuses_parts_with_the_commands_that_take_them(source, tmp_path):
    folder = tmp_path / "features.parts"
    extract_parts(source, folder, 2)
    for given in (
        (source, "-o", folder),
        (folder, "-o", tmp_path / "out"),
        (source, "-o", tmp_path),
    ):
        refused = featx_cli("run", *given, "-b", "tiny")
        assert refused.exit_code == 1
        assert f"featx train-head {folder}" in " ".join(refused.output.split())
    assert not (tmp_path / "features.h5").exists()


def test_plans_say_nothing_of_options_that_change_no_row(source, tmp_path):
    folder = tmp_path / "big.parts"
    extract(source, folder, replace(TINY, part="1/2", workers=1))
    extract(source, folder, replace(TINY, part="2/2", workers=2, on_error="skip", max_bad=0.5))
    assert read_plan(folder).handling["max_bad"] == 1.0
    assert open_features(folder).header.details["max_bad"] == 1.0


def test_damaged_groups_are_refused_by_name(source, tmp_path):
    table = tmp_path / "images.csv"
    images = sorted(path for path in source.rglob("*.*") if path.stem != "bad")
    lines = [f"{path},{path.parent.name},g{n % 5}" for n, path in enumerate(images)]
    table.write_text("\n".join(["path,label,group", *lines]))
    folder = tmp_path / "big.parts"
    extract_parts(table, folder, 2)
    (folder / "index.json").unlink()
    next(folder.glob("groups-*.bin")).write_bytes(b"")
    with pytest.raises(ArtifactInvalid, match="groups-"):
        merge_parts(folder)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="shows what is open")
def test_nothing_that_is_replaced_is_still_open(source, tmp_path, monkeypatch):
    folder, merged, one = (tmp_path / name for name in ("big.parts", "merged.h5", "one.h5"))
    extract_parts(source, folder, 2)
    merge_parts(folder, merged)
    extract(source, one, TINY)
    gone, replace_, unlink = [], Path.replace, Path.unlink

    def require_closed(*paths: Path) -> None:
        links = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
        still_open = {str(path) for path in paths if path.suffix != ".lock"} & set(links)
        assert not still_open  # a lock is let go after its name
        gone.extend(path.name for path in paths)

    def replace_closed(self: Path, target: Path) -> Path:
        require_closed(self, target)
        return replace_(self, target)

    def unlink_closed(self: Path, **how: bool) -> None:
        require_closed(self)
        unlink(self, **how)

    monkeypatch.setattr(Path, "replace", replace_closed)
    monkeypatch.setattr(Path, "unlink", unlink_closed)
    shutil.copy(source / "bees/000.jpg", source / "ants/000.jpg")
    extract(None, folder, part="1/2")
    merge_parts(folder, merged, overwrite=True)
    extract(source, one, TINY)
    train_head(folder, tmp_path / "head.safetensors")
    train_head(one, tmp_path / "head.safetensors")
    assert {"part-00001.h5", "part-00001.h5.partial", "index.json", "merged.h5"} <= set(gone)
    assert {"one.h5", "one.h5.partial", "head.safetensors"} <= set(gone)


def test_a_part_of_a_source_can_be_sent_to_another_process(source):
    whole = open_source(str(source))
    part = RangeSource(whole, whole.samples[10:20], 10)
    sent = pickle.loads(pickle.dumps(select(part, [1, 3])))
    assert [each.sample_id for each in sent.samples] == [
        whole.samples[place].sample_id for place in (11, 13)
    ]
    assert sent.read(1) == whole.read(13)


@pytest.mark.slow
def test_a_part_that_is_terminated_keeps_what_it_has_and_goes_on(photos, tmp_path, as_is):
    source, folder = photos({"ants": 300, "bees": 300}), tmp_path / "big.parts"
    command = [sys.executable, "-m", "featx", "extract", str(source), "-b", "tiny"]
    command += ["--batch-size", "1", "--workers", "1", "-o", str(folder), "--part", "1/2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    journal = folder / "part-00001.h5.partial"
    until = time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size > 20_000) and time.monotonic() < until:
        time.sleep(0.01)
    process.terminate()
    _, told = process.communicate()
    assert process.returncode == 143, told
    assert "part-00001.h5.partial" in told
    report = extract(None, folder, part="1/2")
    assert report.num_resumed > 0
    assert report.num_images == 256


KILLED = """
import os, signal, sys
from pathlib import Path

left = int(sys.argv.pop(1))

def dying(own):
    def call(*given, **named):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return own(*given, **named)
    return call

for name in ("replace", "unlink", "write_text"):
    setattr(Path, name, dying(getattr(Path, name)))
os.link, os.fsync = dying(os.link), dying(os.fsync)
from featx.__main__ import main
main()
"""


@pytest.mark.slow
def test_a_part_killed_at_any_moment_of_its_publication_is_made_by_running_it_again(
    source, tmp_path, as_is
):
    extract_parts(source, tmp_path / "whole.parts", 2)
    folder = tmp_path / "big.parts"
    extract(source, folder, replace(TINY, part="1/2"))
    start, kept = sorted(folder.iterdir()), tmp_path / "kept"
    shutil.copytree(folder, kept)
    arguments = [
        "extract",
        source,
        "-b",
        "tiny",
        "--on-error",
        "skip",
        "-o",
        folder,
        "--part",
        "2/2",
    ]
    for moment in range(100):
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        assert sorted(folder.iterdir()) == start
        command = [sys.executable, "-c", KILLED, str(moment), *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        for _ in range(2):
            assert featx_cli(*arguments).exit_code == 0
        names = {path.name for path in (tmp_path / "whole.parts").iterdir()}
        found = {path.name for path in folder.iterdir()}  # perhaps with a lock that nobody holds
        assert {name for name in found if name[0] != "." and not name.endswith(".lock")} == names
        for name in names:
            assert (folder / name).read_bytes() == (tmp_path / "whole.parts" / name).read_bytes()
        if ended.returncode != -signal.SIGKILL:
            break
    assert ended.returncode == 0, ended.stderr
    assert moment > 5


@pytest.mark.slow
def test_sixteen_processes_killed_and_repeated_at_random_make_one_extraction(
    photos, tmp_path, as_is
):
    source = photos({"ants": 160, "bees": 160})
    shutil.copy(source / "ants/004.jpg", source / "bees/zz.jpg")
    folder, merged = tmp_path / "big.parts", tmp_path / "merged.h5"
    draw, waiting = random.Random(3), list(range(1, 17)) * 2
    draw.shuffle(waiting)
    running: dict[int, subprocess.Popen[bytes]] = {}
    kills = 40

    def begin(number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "featx", "extract", str(source), "-b", "tiny"]
        command += ["--batch-size", "2", "-o", str(folder), "--part", f"{number}/16"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    until = time.monotonic() + 500
    while waiting or running:
        assert time.monotonic() < until
        while waiting and len(running) < 4:
            number = waiting.pop()
            if number in running:
                waiting.insert(0, number)
                break
            running[number] = begin(number)
        time.sleep(draw.random() * 0.4)
        if kills and draw.random() < 0.5:
            kills -= 1
            draw.choice(list(running.values())).send_signal(signal.SIGKILL)
        for number, process in list(running.items()):
            if process.poll() is not None:
                del running[number]
                if process.returncode:
                    assert process.returncode == -signal.SIGKILL, process.stderr.read()
                    waiting.append(number)
                process.stderr.close()
    merge_parts(folder, merged)
    assert merged.read_bytes() == one_file(source, tmp_path, ExtractOptions(backbone="tiny"))
    assert not [path.name for path in folder.iterdir() if path.suffix in (".partial", ".tmp")]
