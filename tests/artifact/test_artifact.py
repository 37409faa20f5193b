"""The header and the publishing of files: round trips, damage, races and failing disks."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from headers import complete_header
from hypothesis import given
from hypothesis import strategies as st

from featx import artifact
from featx.artifact import (
    MAX_HEADER_BYTES,
    NEWEST_SCHEMA_VERSION,
    OLDEST_SCHEMA_VERSION,
    SCHEMA_VERSION,
    Header,
    canonical_json,
    describe_environment,
    differing_settings,
    fingerprint_of,
    partial_path,
    publishing,
    require_apart,
    require_file,
    require_no_links,
    require_same_features,
    require_writable,
    run_files,
)
from featx.errors import (
    ArtifactError,
    ArtifactExists,
    ArtifactInvalid,
    ArtifactMismatch,
    ArtifactMissing,
    ConfigError,
)

PATH = Path("some/head.safetensors")
SPEC = {
    "backbone": "resnet18",
    "weights_sha256": "ab" * 32,
    "preprocess": {
        **{"image_size": 224, "resize": 256, "crop": "center"},
        "mean": [0.485, 0.456, 0.406],
    },
}
HEADER = complete_header("head", SPEC, ("ants", "bees"), {"note": 1}, {"torch": "2.10"})

# Any text that a file name can give: bytes that are not UTF-8 are lone surrogates.
characters = st.characters(exclude_categories=["Cs"]) | st.integers(0xDC80, 0xDCFF).map(chr)
texts = st.text(characters, max_size=12)
scalars = st.none() | st.booleans() | st.integers() | texts
scalars |= st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(texts, values, max_size=4)
headers = st.builds(
    complete_header,
    kind=st.sampled_from(["features", "head", "classifier"]),
    spec=st.fixed_dictionaries({"num_features": st.integers(1, 2**31)}),
    classes=st.lists(texts, max_size=5, unique=True).map(tuple),
    details=mappings,
    environment=st.dictionaries(texts, texts, max_size=3),
)


def read(text: str | bytes, kind: Any = "head") -> Header:
    return Header.from_json(text, path=PATH, kind=kind)


class TestHeader:
    @given(headers)
    def test_what_was_written_is_read(self, header):
        text = header.to_json()
        assert read(text, header.kind) == header
        assert read(text.encode(), header.kind) == header
        assert read(text, header.kind).to_json() == text

    @given(headers)
    def test_it_is_one_line_of_plain_ascii_json(self, header):
        text = header.to_json()
        assert text.isascii()
        assert "\n" not in text
        assert json.loads(text)["fingerprint"] == header.fingerprint

    def test_names_that_are_not_utf8_survive(self):
        name = os.fsdecode(b"caf\xe9")
        details = HEADER.details | {"skipped": [[name, "empty"]]}  # type: ignore[operator]
        header = replace(HEADER, classes=(name, "蚂蚁"), details=details)
        assert read(header.to_json()) == header

    @given(headers, st.data())
    def test_a_changed_character_is_noticed(self, header, data):
        text = header.to_json()
        at = data.draw(st.integers(0, len(text) - 1))
        other = data.draw(st.characters(exclude_characters=text[at]))
        with pytest.raises(ArtifactInvalid):
            read(text[:at] + other + text[at + 1 :], header.kind)

    @given(headers, st.data())
    def test_missing_and_added_characters_are_noticed(self, header, data):
        text = header.to_json()
        at = data.draw(st.integers(0, len(text) - 1))
        longer = text[:at] + data.draw(st.sampled_from([" ", "0", '"', "}", "\n"])) + text[at:]
        for altered in (text[:at], text[:at] + text[at + 1 :], longer, text + "\n"):
            with pytest.raises(ArtifactInvalid):
                read(altered, header.kind)

    @given(st.binary(max_size=200) | values.map(lambda value: canonical_json(value).encode()))
    def test_anything_else_is_refused_as_no_header(self, content):
        with pytest.raises(ArtifactInvalid, match=r"'some/head\.safetensors'"):
            read(content)

    @pytest.mark.parametrize(
        "change",
        [
            {"classes": "ants"},
            {"classes": [1, 2]},
            {"classes": ["ants", "ants"]},
            {"classes": None},
            {"spec": [1]},
            {"spec": None},
            {"details": 3},
            {"environment": [["a"]]},
            {"extra": 1},
            {"fingerprint": "0" * 64},
            {"schema_version": float(SCHEMA_VERSION)},
        ],
        ids=str,
    )
    def test_values_of_the_wrong_shape_are_refused(self, change):
        with pytest.raises(ArtifactInvalid, match=r"damaged|altered"):
            read(canonical_json(json.loads(HEADER.to_json()) | change))

    @pytest.mark.parametrize("missing", ["spec", "classes", "details", "environment", "checksum"])
    def test_a_missing_value_is_refused(self, missing):
        raw = json.loads(HEADER.to_json())
        del raw[missing]
        with pytest.raises(ArtifactInvalid, match=r"damaged|altered"):
            read(canonical_json(raw))

    @pytest.mark.parametrize("depth", [100, 400, 900, 5000])
    def test_deep_nesting_is_refused_not_a_recursion_error(self, depth):
        nested = '{"a":' * depth + "1" + "}" * depth
        text = HEADER.to_json().replace('"note":1', f'"note":{nested}')
        assert nested in text
        with pytest.raises(ArtifactInvalid):
            read(text)

    def test_an_endless_header_is_refused_before_it_is_parsed(self, monkeypatch):
        monkeypatch.setattr(json, "loads", lambda _: pytest.fail("parsed"))
        with pytest.raises(ArtifactInvalid, match=f"over {MAX_HEADER_BYTES}"):
            read(" " * (MAX_HEADER_BYTES + 1))

    @pytest.mark.parametrize(
        ("held", "needed", "message"),
        [
            ("features", "head", "holds cached features, but a head is needed"),
            ("head", "classifier", "holds a head, but a classifier is needed"),
            ("classifier", "features", "holds a classifier, but cached features is needed"),
        ],
    )
    def test_another_kind_is_named(self, held, needed, message):
        with pytest.raises(ArtifactInvalid, match=message) as caught:
            read(replace(HEADER, kind=held).to_json(), needed)
        assert caught.value.path == PATH

    def test_an_unknown_kind_is_quoted(self):
        with pytest.raises(ArtifactInvalid, match="holds kind 'poem', but a head is needed"):
            read(replace(HEADER, kind="poem").to_json())  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("version", "advice"),
        [
            *[(version, "Make the file again.") for version in (-1, 0, OLDEST_SCHEMA_VERSION - 1)],
            *[(version, "Make the file again.") for version in (True, "3", None, [3], {}, 2.5)],
            *[(version, "update featx.") for version in (NEWEST_SCHEMA_VERSION + 1, 10**30)],
        ],
    )
    def test_another_version_says_which_and_what_to_do(self, version, advice):
        with pytest.raises(ArtifactInvalid) as caught:
            read(replace(HEADER, schema_version=version).to_json())
        reads = f"this featx reads {OLDEST_SCHEMA_VERSION} to {NEWEST_SCHEMA_VERSION}"
        assert f"schema version {version!r}; {reads}" in str(caught.value)
        assert str(caught.value).endswith(advice)

    @pytest.mark.parametrize("version", range(OLDEST_SCHEMA_VERSION, NEWEST_SCHEMA_VERSION + 1))
    def test_other_versions_are_read_with_details_nobody_knows(self, version):
        header = replace(HEADER, schema_version=version, details={**HEADER.details, "x": [{}]})
        assert read(header.to_json()) == header

    def test_a_cut_has_a_version_that_older_readers_refuse_by_number(self):
        spec = dict(HEADER.spec) | {"cut": "stage2", "shape": [4, 2, 2]}
        header = replace(HEADER, spec=spec)
        assert (HEADER.schema_version, header.schema_version) == (3, 4)
        assert read(header.to_json()) == header
        raw = json.loads(header.to_json()) | {"schema_version": 3}
        del raw["checksum"]
        with pytest.raises(ArtifactInvalid, match="damaged or altered"):
            read(canonical_json(raw | {"checksum": fingerprint_of(raw)}))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"cut": "stage2"}, r"spec\.shape is missing"),
            ({"shape": [4, 2, 2]}, r"spec\.cut is missing"),
            ({"cut": 3, "shape": [4]}, r"spec\.cut is 3, expected text"),
            ({"cut": "a\0b", "shape": [4]}, "expected text without NUL"),
            ({"cut": "stage2", "shape": []}, "expected a list of at least 1"),
            ({"cut": "stage2", "shape": [4, 0]}, r"spec\.shape\[1\] is 0"),
            ({"cut": "stage2", "shape": [2**20, 2**20]}, r"product is at most 268,435,456"),
            ({"cut": "input", "shape": [3, 32, 32]}, r"spec\.shape is \[3, 32, 32\], expected"),
        ],
    )
    def test_a_cut_and_its_shape_are_checked(self, change, message):
        header = replace(HEADER, spec=dict(HEADER.spec) | change)
        with pytest.raises(ArtifactInvalid, match=message):
            read(header.to_json())


class TestFingerprint:
    @given(mappings, st.randoms())
    def test_it_does_not_depend_on_the_order_of_settings(self, spec, random):
        items = list(spec.items())
        random.shuffle(items)
        assert fingerprint_of(dict(items)) == fingerprint_of(spec)

    @given(mappings, mappings)
    def test_it_differs_exactly_where_a_setting_differs(self, one, two):
        same = fingerprint_of(one) == fingerprint_of(two)
        assert same == (differing_settings(one, two) == [])

    @given(mappings, texts, values, values)
    def test_one_changed_setting_is_found(self, spec, name, a, b):
        one, two = spec | {name: a}, spec | {name: b}
        same = fingerprint_of(one) == fingerprint_of(two)
        assert same == (differing_settings(one, two) == [])

    def test_it_stays_what_it_was(self):
        # Recorded: another value would orphan every file that users have.
        recorded = "1d44e843f260da50c7436a2f8f04b511003558a7836855e9d615eacf8bc99d3e"
        assert fingerprint_of({"b": [1, 2.5, None], "a": {"ü": True}}) == recorded

    def test_nan_has_no_fingerprint(self):
        with pytest.raises(ValueError, match="JSON"):
            fingerprint_of({"mean": float("nan")})


class TestDifferences:
    def test_nested_settings_are_named_with_their_path(self):
        other = SPEC | {"preprocess": SPEC["preprocess"] | {"image_size": 96}}  # type: ignore[operator]
        assert differing_settings(SPEC, other) == ["preprocess.image_size: expected 224, found 96"]

    def test_a_setting_that_one_lacks_is_nothing(self):
        assert differing_settings({"pool": None}, {}) == ["pool: expected None, found nothing"]
        assert differing_settings({}, {"a": {"b": 1}}) == ["a: expected nothing, found {'b': 1}"]

    def test_the_order_is_by_name(self):
        lines = differing_settings({"b": 1, "a": 1}, {"b": 2, "a": 2})
        assert [line.partition(":")[0] for line in lines] == ["a", "b"]

    def test_long_values_are_shortened_with_their_quotes(self):
        (line,) = differing_settings({"sha256": "ab" * 32}, {"sha256": "cd" * 32})
        assert line == "sha256: expected 'abababababab…', found 'cdcdcdcdcdcd…'"

    def test_same_features_pass(self):
        other = replace(HEADER, kind="features", details={}, environment={})
        require_same_features(HEADER, other, path=PATH)

    def test_a_mismatch_names_file_and_setting(self):
        other = replace(HEADER, spec=SPEC | {"backbone": "vgg16"})
        with pytest.raises(ArtifactMismatch) as caught:
            require_same_features(HEADER, other, path=PATH)
        assert str(PATH) in str(caught.value)
        assert "backbone: expected 'resnet18', found 'vgg16'" in str(caught.value)
        assert "weights_sha256" not in str(caught.value)

    @pytest.mark.parametrize(
        ("classes", "message"),
        [
            (("bees", "ants"), "classes: the same names in another order"),
            (("ants", "wasps"), "classes: missing 'bees'; unexpected 'wasps'"),
            (("ants",), "classes: missing 'bees'"),
            (("ants", "bees", "c", "d", "e", "f"), "unexpected 'c', 'd', 'e', …"),
        ],
    )
    def test_other_classes_are_named(self, classes, message):
        with pytest.raises(ArtifactMismatch, match=message):
            require_same_features(HEADER, replace(HEADER, classes=classes), path=PATH)

    def test_a_setting_of_none_is_not_a_setting_left_out(self):
        one, two = replace(HEADER, spec={"layer": None}), replace(HEADER, spec={})
        with pytest.raises(ArtifactMismatch, match="layer"):
            require_same_features(one, two, path=PATH)


def test_the_environment_names_versions():
    found = describe_environment("numpy", "pillow")
    assert found.keys() == {"featx", "numpy", "pillow", "python", "machine"}
    assert all(found.values())


class TestRequireFile:
    def test_a_missing_file_names_the_command_that_makes_it(self, tmp_path):
        with pytest.raises(ArtifactMissing, match=r"not exist\. Make it with 'featx extract'"):
            require_file(tmp_path / "features.h5", made_by="featx extract")

    def test_folders_pipes_and_names_that_cannot_be_are_refused(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path, tmp_path / "pipe"):
            with pytest.raises(ArtifactInvalid, match="is not a file"):
                require_file(path, made_by="x")
        with pytest.raises(ArtifactError, match="File name too long"):
            require_file(tmp_path / ("x" * 300), made_by="x")

    def test_a_dangling_link_is_missing(self, tmp_path):
        (tmp_path / "link").symlink_to("nowhere")
        with pytest.raises(ArtifactMissing):
            require_file(tmp_path / "link", made_by="x")


class TestRequireWritable:
    def test_the_folder_is_made(self, tmp_path):
        require_writable(tmp_path / "a" / "b" / "f.h5", overwrite=False)
        assert list((tmp_path / "a" / "b").iterdir()) == []

    def test_what_is_there_is_kept_unless_overwritten(self, tmp_path):
        path = tmp_path / "f.h5"
        path.write_text("old")
        with pytest.raises(ArtifactExists, match="Use overwrite=True"):
            require_writable(path, overwrite=False)
        require_writable(path, overwrite=True)
        assert path.read_text() == "old"

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_folder_is_never_replaced(self, tmp_path, overwrite):
        with pytest.raises(ArtifactError, match="is a folder"):
            require_writable(tmp_path, overwrite=overwrite)

    def test_a_device_or_pipe_is_never_replaced(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", Path("/dev/null")):
            with pytest.raises(ArtifactError, match="not a regular file"):
                require_writable(path, overwrite=True)

    def test_a_link_to_nothing_yet_is_written_through(self, tmp_path):
        (tmp_path / "link").symlink_to("nowhere")
        require_writable(tmp_path / "link", overwrite=False)
        assert not (tmp_path / "nowhere").exists()

    def test_links_that_lead_nowhere_are_named(self, tmp_path):
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        (tmp_path / "unmounted").symlink_to("/no such disk/f.h5")
        with pytest.raises(ArtifactError, match="link that leads back to itself"):
            require_writable(tmp_path / "a", overwrite=True)
        with pytest.raises(ArtifactError, match="whose folder does not exist"):
            require_writable(tmp_path / "unmounted", overwrite=True)

    def test_a_file_in_the_place_of_the_folder_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ArtifactError, match="Cannot make the folder"):
            require_writable(tmp_path / "file" / "f.h5", overwrite=False)

    def test_a_name_that_cannot_be_is_named(self, tmp_path):
        with pytest.raises(ArtifactError, match="File name too long"):
            require_writable(tmp_path / ("x" * 300), overwrite=False)
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(ArtifactError, match="back to itself"):
            require_writable(tmp_path / "loop", overwrite=False)

    def test_a_folder_that_cannot_be_written_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
        with pytest.raises(ArtifactError, match="Cannot write to the folder"):
            require_writable(tmp_path / "f.h5", overwrite=False)

    @pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
    def test_a_locked_folder_is_named(self, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(ArtifactError, match="Cannot write to the folder"):
            require_writable(tmp_path / "f.h5", overwrite=False)


def failing(number: int, *, after: int = 0) -> Callable[[int], None]:
    """Return an ``os.fsync`` that fails with an errno, after so many calls that do not."""
    calls = iter(range(1000))

    def fsync(_: int) -> None:
        if next(calls) >= after:
            raise OSError(number, os.strerror(number))

    return fsync


class TestPublishing:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "out" / "f.bin"

    def publish(self, path: Path, text: str = "new", *, overwrite: bool = False) -> None:
        with publishing(path, overwrite=overwrite) as temporary:
            assert temporary.parent == path.parent  # the same file system: a move is atomic
            temporary.write_text(text)

    def test_the_file_appears_whole_and_alone(self, path):
        with publishing(path, overwrite=False) as temporary:
            temporary.write_text("half")
            assert not path.exists()
            temporary.write_text("whole")
        assert path.read_text() == "whole"
        assert os.listdir(path.parent) == [path.name]
        assert path.stat().st_nlink == 1

    def test_a_reader_of_the_old_file_keeps_it(self, path):
        self.publish(path, "old")
        with path.open() as reader:
            self.publish(path, "new", overwrite=True)
            assert reader.read() == "old"
        assert path.read_text() == "new"

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError, SystemExit])
    @pytest.mark.parametrize("old", [None, "old"])
    def test_an_interruption_leaves_everything_as_it_was(self, path, error, old):
        if old:
            self.publish(path, old)

        def interrupted() -> None:
            with publishing(path, overwrite=True) as temporary:
                temporary.write_text("half")
                raise error

        with pytest.raises(error):
            interrupted()
        assert os.listdir(path.parent) == ([path.name] if old else [])
        assert not old or path.read_text() == old

    def test_what_is_there_stops_it_before_any_work(self, path):
        self.publish(path, "old")
        with pytest.raises(ArtifactExists), publishing(path, overwrite=False):
            pytest.fail("worked")
        assert path.read_text() == "old"

    @pytest.mark.parametrize("links", [True, False])
    def test_a_file_that_appears_meanwhile_is_kept(self, path, monkeypatch, links):
        if not links:
            monkeypatch.setattr(os, "link", no_links)

        def too_late() -> None:
            with publishing(path, overwrite=False) as temporary:
                temporary.write_text("mine")
                path.write_text("theirs")

        with pytest.raises(ArtifactExists):
            too_late()
        assert path.read_text() == "theirs"
        assert os.listdir(path.parent) == [path.name]

    def test_it_works_where_there_are_no_hard_links(self, path, monkeypatch):
        monkeypatch.setattr(os, "link", no_links)
        self.publish(path)
        assert path.read_text() == "new"
        assert os.listdir(path.parent) == [path.name]

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
    def test_a_failing_disk_is_told_and_leaves_nothing(self, path, monkeypatch, number, overwrite):
        monkeypatch.setattr(os, "fsync", failing(number))
        with pytest.raises(ArtifactError, match=os.strerror(number)) as caught:
            self.publish(path, overwrite=overwrite)
        assert f"'{path}'" in str(caught.value)
        assert caught.value.path == path
        assert isinstance(caught.value.__cause__, OSError)
        assert os.listdir(path.parent) == []

    def test_a_disk_that_fails_in_the_body_is_told_likewise(self, path):
        with pytest.raises(ArtifactError, match="No space left"), publishing(path, overwrite=False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with pytest.raises(ArtifactError, match="words of h5py"), publishing(path, overwrite=False):
            raise OSError("words of h5py")

    def test_a_disk_that_fails_at_the_folder_never_shows_a_part(self, path, monkeypatch):
        self.publish(path, "old")
        monkeypatch.setattr(os, "fsync", failing(errno.EIO, after=1))
        with pytest.raises(ArtifactError):
            self.publish(path, "new", overwrite=True)
        assert path.read_text() in ("old", "new")
        assert os.listdir(path.parent) == [path.name]

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
    def test_file_systems_that_cannot_sync_a_folder_will_do(self, path, monkeypatch, number):
        monkeypatch.setattr(os, "fsync", failing(number, after=1))
        self.publish(path)
        assert path.read_text() == "new"

    def test_content_is_synced_before_the_name_and_the_name_before_the_end(self, path, monkeypatch):
        steps: list[str] = []
        sync, link = os.fsync, os.link

        def note_sync(descriptor: int) -> None:
            folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            steps.append("sync folder" if folder else "sync file")
            sync(descriptor)

        def note_link(*args: Any) -> None:
            steps.append("link")
            link(*args)

        monkeypatch.setattr(os, "fsync", note_sync)
        monkeypatch.setattr(os, "link", note_link)
        self.publish(path)
        assert steps == ["sync file", "link", "sync folder"]

    def test_errors_of_ours_pass_unchanged(self, path):
        error = ArtifactMissing("x", "'x' is missing.")
        with pytest.raises(ArtifactMissing) as caught, publishing(path, overwrite=False):
            raise error
        assert caught.value is error

    def test_a_body_that_writes_nothing_is_an_error(self, path):
        with pytest.raises(ArtifactError, match="No such file"), publishing(path, overwrite=False):
            pass

    def test_a_name_as_long_as_the_file_system_allows(self, tmp_path):
        self.publish(tmp_path / ("y" * 255))
        assert os.listdir(tmp_path) == ["y" * 255]

    def test_two_at_once_do_not_share_a_temporary(self, path):
        with (
            publishing(path, overwrite=True) as one,
            publishing(path, overwrite=True) as two,
        ):
            assert one != two
            one.write_text("one")
            two.write_text("two")
        assert path.read_text() == "one"  # the last to finish

    def test_of_many_writers_one_wins_and_the_others_are_told(self, path):
        def write(number: int) -> str:
            self.publish(path, f"writer {number}" * 1000)
            return path.read_text()

        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(write, number) for number in range(16)]
        winners = [future.result() for future in futures if not future.exception()]
        assert winners == [path.read_text()]
        losers = {type(future.exception()) for future in futures if future.exception()}
        assert losers == {ArtifactExists}
        assert os.listdir(path.parent) == [path.name]

    @pytest.mark.parametrize("overwrite", [True, False])
    def test_whoever_holds_a_lock_may_name_the_temporary(self, path, overwrite):
        own = path.with_name("f.bin.tmp")
        path.parent.mkdir()
        own.write_text("left by a killed process")
        with publishing(path, overwrite=overwrite, temporary=own) as temporary:
            assert temporary == own
            own.write_text("new")
        assert path.read_text() == "new"
        assert os.listdir(path.parent) == ["f.bin"]

        def interrupted() -> None:
            with publishing(path, overwrite=True, temporary=own):
                own.write_text("half")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            interrupted()
        assert path.read_text() == "new"
        assert os.listdir(path.parent) == ["f.bin"]

    def test_a_temporary_is_hidden(self, path):
        with publishing(path, overwrite=False) as temporary:
            assert temporary.name.startswith(".")
            assert temporary.name.endswith(".tmp")
            temporary.write_text("")


def no_links(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_the_module_never_leaves_a_descriptor_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for number in range(5):
        with artifact.publishing(tmp_path / str(number), overwrite=False) as temporary:
            temporary.write_text("x")
    assert len(os.listdir("/proc/self/fd")) == before


def write(path: Path, text: str, *, overwrite: bool = True) -> None:
    with publishing(path, overwrite=overwrite) as temporary:
        temporary.write_text(text)


class TestLinks:
    @pytest.mark.parametrize("absolute", [True, False])
    def test_the_file_behind_a_link_is_replaced(self, tmp_path, absolute):
        (tmp_path / "scratch").mkdir()
        target, link = tmp_path / "scratch" / "f", tmp_path / "link"
        target.write_text("old")
        link.symlink_to(target if absolute else "scratch/f")
        (tmp_path / "outer").symlink_to("link")
        write(tmp_path / "outer", "new")
        assert link.is_symlink()
        assert (tmp_path / "outer").is_symlink()
        assert target.read_text() == "new"
        assert os.listdir(tmp_path / "scratch") == ["f"]
        with pytest.raises(ArtifactExists):
            write(link, "newer", overwrite=False)

    def test_the_temporary_lies_beside_the_file_behind_a_link(self, tmp_path):
        (tmp_path / "scratch").mkdir()
        (tmp_path / "link").symlink_to("scratch/f")
        with publishing(tmp_path / "link", overwrite=True) as temporary:
            assert temporary.parent.resolve() == tmp_path / "scratch"
            temporary.write_text("x")
        assert (tmp_path / "scratch" / "f").read_text() == "x"

    def test_link_and_target_have_the_same_files_beside_them(self, tmp_path):
        (tmp_path / "scratch").mkdir()
        (tmp_path / "link").symlink_to("scratch/f.h5")
        names = [path.name for path in run_files(tmp_path / "link").values()]
        assert names == ["link", "f.h5.partial", "f.h5.lock"]
        assert partial_path(tmp_path / "link") == tmp_path / "scratch" / "f.h5.partial"

    @pytest.mark.parametrize("suffix", [".partial", ".lock"])
    def test_a_link_in_the_place_of_a_file_beside_it(self, tmp_path, suffix):
        require_no_links(tmp_path / "f.h5")
        (tmp_path / f"f.h5{suffix}").symlink_to("/etc/passwd")
        with pytest.raises(ArtifactExists, match=rf"f\.h5{suffix}' is a link"):
            require_no_links(tmp_path / "f.h5")


class TestModes:
    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
    def test_a_replaced_file_keeps_its_mode(self, tmp_path, mode):
        path = tmp_path / "f"
        path.write_text("old")
        path.chmod(mode)
        write(path, "new")
        assert path.read_text() == "new"
        assert stat.S_IMODE(path.stat().st_mode) == mode

    @pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
    def test_a_new_file_has_the_mode_of_the_umask(self, tmp_path, umask, mode):
        before = os.umask(umask)
        try:
            write(tmp_path / "f", "new")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == mode

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_a_replaced_file_keeps_its_owner(self, tmp_path):
        path = tmp_path / "f"
        path.write_text("old")
        os.chown(path, 1234, 5678)
        write(path, "new")
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)


class TestApart:
    def same(self, output: Path, other: Path) -> bool:
        try:
            require_apart({"the report": output}, {"the head": other})
        except ConfigError as err:
            return str(err).startswith(f"the report '{output}' would replace the head")
        return False

    def test_one_file_under_several_names(self, tmp_path):
        (tmp_path / "a").mkdir()
        file = tmp_path / "a" / "f"
        file.write_text("x")
        (tmp_path / "link").symlink_to("a/f")
        (tmp_path / "folder").symlink_to("a")
        os.link(file, tmp_path / "hard")
        for name in ("a/f", "link", "folder/f", "hard", "a/../a/./f"):
            assert self.same(tmp_path / name, file), name
            assert self.same(file, tmp_path / name), name
        assert not self.same(tmp_path / "a" / "g", file)

    def test_files_that_are_not_there_yet(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "folder").symlink_to("a")
        (tmp_path / "dangling").symlink_to("a/f")
        assert self.same(tmp_path / "folder" / "f", tmp_path / "a" / "f")
        assert self.same(tmp_path / "dangling", tmp_path / "a" / "f")
        assert not self.same(tmp_path / "a" / "f", tmp_path / "a" / "f.partial")
        assert not self.same(tmp_path / "b" / "c" / "f", tmp_path / "a" / "f")

    def test_two_outputs_are_two_files(self, tmp_path):
        outputs = {"the model": tmp_path / "m", "the model card": tmp_path / "." / "m"}
        with pytest.raises(ConfigError, match=r"the model card .* would replace the model"):
            require_apart(outputs, {})

    def test_names_that_cannot_be_are_left_to_others(self, tmp_path):
        assert not self.same(tmp_path / ("x" * 300), tmp_path / "f")
