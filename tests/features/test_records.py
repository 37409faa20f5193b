"""Records of a journal: what goes in comes out, and nothing else; which numbers may be stored."""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from featx.errors import ArtifactInvalid, BackboneError, ConfigError
from featx.features.records import (
    ENTRY,
    MAGIC,
    MAX_FLOAT16_LOSS,
    Batch,
    RowLayout,
    Scan,
    count_images,
    pack,
    read_record,
    record,
    require_finite,
    require_float16,
    require_no_underflow,
    unpack,
)

names = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.binary(min_size=1, max_size=40).map(lambda name: name.decode("utf-8", "surrogateescape")),
    st.sampled_from(["a\nb", "\0", "é", "e\u0301", " ", "日本", "x" * 5000]),
)
int64 = st.integers(-(2**63), 2**63 - 1)


@st.composite
def batches(draw: st.DrawFn, num_features: int | None = None) -> Batch:
    images = draw(st.lists(st.tuples(names, st.one_of(st.just(""), names)), max_size=12))
    num_features = num_features or draw(st.integers(1, 9))
    num_rows = sum(not reason for _, reason in images)
    bits = np.random.default_rng(draw(st.integers(0, 2**32))).integers(
        0, 2**32, (num_rows, num_features), dtype=np.uint32
    )
    column = {"min_size": len(images), "max_size": len(images)}
    return Batch(
        sample_ids=tuple(name for name, _ in images),
        stamps=np.array(draw(st.lists(st.tuples(*[int64] * 3), **column)), np.int64).reshape(-1, 3),
        digests=np.frombuffer(
            draw(st.binary(min_size=16 * len(images), max_size=16 * len(images))), np.uint8
        ).reshape(-1, 16),
        reasons=tuple(reason for _, reason in images),
        features=bits.view(np.float32),  # NaN, infinities and denormals among them
    )


def equal(a: Batch, b: Batch) -> bool:
    return (
        (a.sample_ids, a.reasons) == (b.sample_ids, b.reasons)
        and np.array_equal(a.stamps, b.stamps)
        and np.array_equal(a.digests, b.digests)
        and a.features.shape == b.features.shape
        and a.features.tobytes() == b.features.tobytes()
    )


@contextmanager
def file_of(content: bytes) -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file.fileno()


def scan_of(content: bytes) -> tuple[dict[str, Any] | None, list[tuple[int, int, int, int]], int]:
    with file_of(content) as descriptor:
        scan = Scan(descriptor, Path("log"))
        return scan.settings(), list(scan.batches()), scan.end


PAIRS = RowLayout((2,))
SETTINGS = record(0, b'{"a":1}')


@given(batch=batches())
def test_a_batch_comes_back(batch):
    layout = RowLayout((batch.features.shape[1],))
    found = unpack(pack(batch, layout), layout)
    assert equal(found, batch)
    assert found.has_row.tolist() == [not reason for reason in batch.reasons]
    assert found.features.dtype == np.float32
    assert found.stamps.dtype == np.int64
    assert found.digests.dtype == np.uint8


@given(batch=batches(3))
def test_other_layouts_of_the_rows_are_the_same_batch(batch):
    wide = np.repeat(batch.features, 2, axis=1)[:, ::2]
    turned = np.asfortranarray(batch.features)
    for features in (wide, turned, batch.features.astype(">f4")):
        other = Batch(batch.sample_ids, batch.stamps, batch.digests, batch.reasons, features)
        assert (
            unpack(pack(other, RowLayout((3,))), RowLayout((3,))).features.tobytes()
            == batch.features.tobytes()
        )


@given(parts=st.lists(batches(2), max_size=6))
def test_a_log_of_many_batches_is_read_to_its_end(parts):
    content = SETTINGS + b"".join(record(i, pack(part, PAIRS)) for i, part in enumerate(parts, 1))
    settings, found, end = scan_of(content)
    assert settings == {"a": 1}
    assert end == len(content)
    assert [(images, rows) for _, images, rows, _ in found] == [
        (len(part.sample_ids), len(part.features)) for part in parts
    ]
    with file_of(content) as descriptor:
        for number, (offset, *_) in enumerate(found, 1):
            payload = read_record(descriptor, offset, number, Path("log"))
            assert equal(unpack(payload, PAIRS), parts[number - 1])
        total = sum(len(part.sample_ids) for part in parts)
        assert count_images(descriptor, len(SETTINGS)) == total


@given(parts=st.lists(batches(2), min_size=1, max_size=4), data=st.data())
def test_any_change_of_a_byte_ends_the_log_before_it(parts, data):
    whole = [SETTINGS, *(record(i, pack(part, PAIRS)) for i, part in enumerate(parts, 1))]
    content = bytearray(b"".join(whole))
    position = data.draw(st.integers(len(SETTINGS), len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    ends = np.cumsum([len(part) for part in whole])
    intact = int(np.searchsorted(ends, position, side="right"))
    settings, found, end = scan_of(bytes(content))
    assert settings == {"a": 1}
    assert len(found) == intact - 1
    assert end == ends[intact - 1]


@given(parts=st.lists(batches(2), min_size=1, max_size=4), data=st.data())
def test_a_log_cut_anywhere_keeps_its_whole_batches(parts, data):
    whole = [SETTINGS, *(record(i, pack(part, PAIRS)) for i, part in enumerate(parts, 1))]
    length = data.draw(st.integers(0, len(b"".join(whole))))
    settings, found, end = scan_of(b"".join(whole)[:length])
    ends = np.cumsum([len(part) for part in whole])
    kept = int(np.searchsorted(ends, length, side="right"))
    assert (settings is None) == (kept == 0)
    assert len(found) == max(0, kept - 1)
    assert end == (ends[kept - 1] if kept else 0)


def test_the_layout_is_the_documented_one():
    payload = b"abc"
    start = struct.pack("<4sIQ", b"fxj1", 7, 3)
    assert record(7, payload) == start + struct.pack("<I", zlib.crc32(start + payload)) + payload
    assert MAGIC == b"fxj1"
    assert ENTRY.itemsize == 16 + 3 * 8 + 2 * 4


def crafted(**changes: int) -> bytes:
    """Return a batch payload of one image with a row of two values, some numbers altered."""
    counts = {"images": 1, "rows": 1, "text": 1, "id": 1, "reason": 0} | changes
    entry = np.zeros(1, ENTRY)
    entry["id_bytes"], entry["reason_bytes"] = counts["id"], counts["reason"]
    head = struct.pack("<III", counts["images"], counts["rows"], counts["text"])
    return head + entry.tobytes() + b"a" + bytes(8)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"x",
        bytes(11),
        crafted(images=2),
        crafted(images=2**32 - 1),
        crafted(rows=0),
        crafted(rows=2),
        crafted(rows=3),
        crafted(text=0),
        crafted(text=9),
        crafted(text=2**32 - 1),
        crafted(id=0),
        crafted(id=2**32 - 1),
        crafted(reason=1),
        crafted(id=0, reason=1),
    ],
)
def test_a_record_whose_parts_do_not_add_up_is_no_batch(payload):
    """Its CRC is right: it was written by somebody else."""
    assert scan_of(SETTINGS + record(1, crafted()))[1] == [(len(SETTINGS), 1, 1, 8)]
    assert scan_of(SETTINGS + record(1, payload))[1] == []


@pytest.mark.parametrize(
    "content",
    [
        record(1, b"{}") + SETTINGS,  # another number
        record(0, b'{"a": "' + b"x" * 2**20 + b'"}'),  # longer than settings ever are
        SETTINGS[:-1],
        struct.pack("<4sIQI", MAGIC, 0, 2**63, 0),
    ],
)
def test_without_a_whole_record_0_there_is_nothing(content):
    assert scan_of(content) == (None, [], 0)


@pytest.mark.parametrize("text", [b"", b"no json", b"[]", b"3", b"\xff", b"[" * 100_000])
def test_settings_that_are_none(text):
    with pytest.raises(ArtifactInvalid, match=r"'log' is not a journal.*no settings"):
        scan_of(record(0, text))


@pytest.mark.parametrize("content", [b"x", b"fxj2", b"\1" * 100, b"path,label\n", b"fxJ1"])
def test_another_file_is_none_of_ours(content):
    with pytest.raises(ArtifactInvalid, match=r"'log' is not a journal of .*\. Move it"):
        scan_of(content)


def test_a_record_that_is_asked_for_and_not_there(tmp_path):
    with file_of(SETTINGS) as descriptor:
        for offset, number in ((0, 1), (1, 0), (len(SETTINGS), 1), (10**9, 0)):
            with pytest.raises(ArtifactInvalid, match=f"'log' is damaged at byte {offset}"):
                read_record(descriptor, offset, number, Path("log"))
        assert json.loads(read_record(descriptor, 0, 0, Path("log"))) == {"a": 1}


def test_counting_never_goes_astray(tmp_path):
    """Lengths are all it looks at, and these may be anything."""
    body = record(1, crafted())
    for tail in (b"", b"fxj1", body[:25], struct.pack("<4sIQII", MAGIC, 2, 2**64 - 1, 0, 9)):
        with file_of(SETTINGS + body + tail) as descriptor:
            assert count_images(descriptor, len(SETTINGS)) == 1
            assert count_images(descriptor, 0) == 0
            os.lseek(descriptor, 0, os.SEEK_SET)


NAMES = [f"{number}.jpg" for number in range(30)]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
matrices = hnp.arrays(np.float32, st.tuples(st.integers(0, 6), st.integers(1, 5)), elements=finite)


@given(features=matrices)
def test_numbers_pass(features):
    require_finite(features, NAMES[: len(features)])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@given(features=matrices.filter(len), data=st.data())
def test_what_is_no_number_names_its_images(value, features, data):
    bad = data.draw(st.sets(st.integers(0, len(features) - 1), min_size=1))
    features = features.copy()
    for row in bad:
        features[row, data.draw(st.integers(0, features.shape[1] - 1))] = value
    with pytest.raises(BackboneError, match="NaN or infinite") as caught:
        require_finite(features, NAMES[: len(features)])
    for row in range(len(features)):
        assert (f"'{row}.jpg'" in str(caught.value)) == (row in bad)


def test_ten_names_are_enough():
    with pytest.raises(BackboneError, match=r"'9\.jpg' and 20 more\. ") as caught:
        require_finite(np.full((30, 2), np.nan, np.float32), NAMES)
    assert "'10.jpg'" not in str(caught.value)


@given(features=matrices)
def test_float16_that_passes_is_as_close_as_promised(features):
    try:
        require_float16(features, NAMES[: len(features)])
    except ConfigError:
        return
    stored = features.astype(np.float16).astype(np.float64)
    assert np.isfinite(stored).all()
    lost = np.linalg.norm(stored - features, axis=1)
    assert (lost <= MAX_FLOAT16_LOSS * np.linalg.norm(features.astype(np.float64), axis=1)).all()


@given(
    features=hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 6), st.integers(1, 5)),
        elements=st.one_of(st.just(0.0), st.floats(2**-14, 65504, width=32)),
    )
)
def test_rows_in_its_range_pass(features):
    """Zeros too: what is nothing loses nothing."""
    require_float16(features, NAMES[: len(features)])
    require_float16(-features, NAMES[: len(features)])


@pytest.mark.parametrize("value", [65505, -65520, 3e38])
def test_an_overflow_names_image_and_value(value):
    features = np.ones((3, 4), np.float32)
    features[1, 2] = value
    with pytest.raises(ConfigError, match="65,504") as caught:
        require_float16(features, NAMES[:3])
    assert f"'1.jpg' is {abs(value):.6g}. Use dtype='float32'" in str(caught.value)


@pytest.mark.parametrize("value", [1e-5, 1e-8, 1e-45])
def test_an_underflow_names_the_image(value):
    features = np.ones((3, 4), np.float32)
    features[2] = value
    with pytest.raises(ConfigError, match=r"'2\.jpg' by .*%.*0\.1% allowed.*Use dtype='float32'"):
        require_float16(features, NAMES[:3])


def test_small_values_beside_large_ones_may_vanish():
    require_float16(np.array([[1, 1e-9, 0]], np.float32), NAMES[:1])


def test_one_bad_row_is_not_hidden_by_good_ones():
    features = np.ones((1000, 8), np.float32)
    features[777] = 1e-9
    with pytest.raises(ConfigError, match="'image 777'"):
        require_float16(features, [f"image {number}" for number in range(1000)])


def test_zeros_alone_are_what_fp16_lost():
    with pytest.raises(ConfigError, match=r"of 8 images are zero.*precision='bf16'"):
        require_no_underflow(np.zeros((8, 5), np.float32))


@pytest.mark.parametrize(
    "features", [np.zeros((0, 5)), np.zeros((7, 5)), np.diag([*9 * [0], 1e-12])]
)
def test_some_zeros_are_no_underflow(features):
    require_no_underflow(features.astype(np.float32))
