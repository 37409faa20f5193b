"""The calls that every written byte goes through: whole, in place, or an error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from feature_files import file_size_limit
from hypothesis import given
from hypothesis import strategies as st

from featx.features import storage


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


@given(data=st.binary(max_size=200), offset=st.integers(0, 100), at_once=st.integers(1, 50))
def test_all_of_it_is_written_however_little_goes_at_once(
    descriptor, monkeypatch, data, offset, at_once
):
    pwrite = os.pwrite
    os.ftruncate(descriptor, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda fd, part, at: pwrite(fd, part[:at_once], at))
        storage.write(descriptor, data, offset)
    expected = bytes(offset) + data if data else b""
    assert os.pread(descriptor, 1000, 0) == expected


def test_views_of_other_items_are_written_as_bytes(descriptor):
    storage.write(descriptor, memoryview(b"abcdefgh").cast("I"), 1)
    assert os.pread(descriptor, 100, 0) == b"\0abcdefgh"


def test_the_position_stays_where_it_is(descriptor):
    storage.write(descriptor, b"abc", 10)
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0


@pytest.mark.parametrize("length", [0, 3, 20])
def test_truncate_gives_the_length(descriptor, length):
    storage.write(descriptor, b"abcdefgh", 0)
    storage.truncate(descriptor, length)
    storage.sync(descriptor)
    assert os.pread(descriptor, 100, 0) == b"abcdefgh"[:length].ljust(length, b"\0")


def test_a_full_disk_is_an_error(descriptor):
    with file_size_limit(1000), pytest.raises(OSError, match="File too large"):
        storage.write(descriptor, bytes(5000), 0)
    assert os.fstat(descriptor).st_size == 1000
