"""CIFAR-10's pickles: honest ones of every age, damaged ones, and attacks."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featx.errors import SourceError
from featx.images.sources import open_source
from featx.images.sources.arrays import open_cifar10
from featx.images.sources.sample import ArraySource, stamp_of

NAMES = ["airplane", "cat", "ship"]


def batch(num: int = 4, *, seed: int = 0) -> dict[Any, Any]:
    rng = np.random.default_rng(seed)
    return {
        "batch_label": "training batch 1 of 5",
        "labels": [int(label) for label in rng.integers(0, len(NAMES), num)],
        "data": rng.integers(0, 256, (num, 3072), dtype=np.uint8),
        "filenames": [f"{number}.png" for number in range(num)],
    }


def planes_of(source: ArraySource) -> np.ndarray:
    """Return the images as CIFAR-10 has them, ``(N, 3072)``."""
    return source.images.transpose(0, 3, 1, 2).reshape(-1, 3072)


def with_bytes_keys(values: dict[Any, Any]) -> dict[Any, Any]:
    return {key.encode(): value for key, value in values.items()}


def python2_pickle(values: dict[str, Any]) -> bytes:
    """Return what Python 2 wrote for the official files: protocol 2 with byte strings."""
    text = {"data", "labels", "batch_label", "filenames", "label_names"}
    assert values.keys() <= text
    out = io.BytesIO()

    def string(value: bytes) -> None:
        if len(value) < 256:
            out.write(b"U" + bytes([len(value)]) + value)  # SHORT_BINSTRING
        else:
            out.write(b"T" + struct.pack("<i", len(value)) + value)  # BINSTRING

    def number(value: int) -> None:
        out.write(b"J" + struct.pack("<i", value))

    def array(value: np.ndarray) -> None:
        out.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n")
        out.write(b"K\x00\x85")
        string(b"b")
        out.write(b"\x87R(K\x01")
        number(value.shape[0])
        number(value.shape[1])
        out.write(b"\x86cnumpy\ndtype\n")
        string(b"u1")
        out.write(b"K\x00K\x01\x87R(K\x03")
        string(b"|")
        out.write(b"NNN")
        number(-1)
        number(-1)
        out.write(b"K\x00tb\x89")
        string(value.tobytes())
        out.write(b"tb")

    out.write(b"\x80\x02}(")
    for key, value in values.items():
        string(key.encode())
        if isinstance(value, np.ndarray):
            array(value)
        elif isinstance(value, list):
            out.write(b"](")
            for item in value:
                number(item) if isinstance(item, int) else string(item.encode())
            out.write(b"e")
        else:
            string(value.encode())
    out.write(b"u.")
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}, 2))
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch(), 2))
    return tmp_path


class TestHonestFiles:
    def test_batches_become_samples_in_order(self, folder):
        for number, name in enumerate(["data_batch_2", "data_batch_5", "test_batch"], 1):
            (folder / name).write_bytes(pickle.dumps(batch(3, seed=number), 2))
        source = open_cifar10(folder)
        assert source.classes == tuple(NAMES)
        ids = [sample.sample_id for sample in source.samples]
        assert ids[:5] == [*(f"data_batch_1/0000{i}" for i in range(4)), "data_batch_2/00000"]
        assert ids[-1] == "test_batch/00002"
        assert [s.split for s in source.samples] == ["train"] * 10 + ["test"] * 3
        assert [s.label for s in source.samples[:4]] == batch()["labels"]

    def test_pixels_come_as_rows_columns_and_channels(self, folder):
        source, values = open_cifar10(folder), batch()["data"]
        for index in range(4):
            pixels = source.read(index)
            assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)
            assert pixels.flags.c_contiguous
            for row, column, channel in ((0, 0, 0), (0, 31, 1), (5, 7, 2), (31, 31, 2)):
                expected = values[index, channel * 1024 + row * 32 + column]
                assert pixels[row, column, channel] == expected

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize("keys", [dict, with_bytes_keys])
    def test_every_protocol_and_kind_of_key(self, folder, protocol, keys):
        names = keys({"label_names": NAMES})
        (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol))
        (folder / "data_batch_1").write_bytes(pickle.dumps(keys(batch()), protocol))
        source = open_cifar10(folder)
        np.testing.assert_array_equal(planes_of(source), batch()["data"])
        assert [sample.label for sample in source.samples] == batch()["labels"]

    def test_bytes_names_are_text(self, folder):
        names = {b"label_names": [name.encode() for name in NAMES]}
        (folder / "batches.meta").write_bytes(pickle.dumps(names, 2))
        assert open_cifar10(folder).classes == tuple(NAMES)

    def test_what_python_2_wrote(self, folder):
        for name, values in (("batches.meta", {"label_names": NAMES}), ("data_batch_1", batch())):
            content = python2_pickle(values)
            assert set(pickle.loads(content, encoding="bytes")) == {k.encode() for k in values}
            (folder / name).write_bytes(content)
        source = open_cifar10(folder)
        np.testing.assert_array_equal(planes_of(source), batch()["data"])
        assert source.classes == tuple(NAMES)

    def test_columns_first(self, folder):
        values = batch()
        values["data"] = np.asfortranarray(values["data"])
        (folder / "data_batch_1").write_bytes(pickle.dumps(values, 2))
        np.testing.assert_array_equal(planes_of(open_cifar10(folder)), values["data"])

    def test_the_folder_above_will_do_and_the_uri_finds_it_again(self, folder):
        inner = folder / "cifar-10-batches-py"
        inner.mkdir()
        for name in ("batches.meta", "data_batch_1"):
            (folder / name).rename(inner / name)
        source = open_source(f"cifar10:{folder}")
        assert source.uri == f"cifar10:{inner}"
        assert open_source(source.uri).samples == source.samples

    def test_a_sample_has_the_stamp_of_its_batch_when_it_was_opened(self, folder, monkeypatch):
        (folder / "test_batch").write_bytes(pickle.dumps(batch(3, seed=1), 2))
        expected = [stamp_of(f"{folder}/data_batch_1")] * 4 + [stamp_of(f"{folder}/test_batch")] * 3
        source = open_cifar10(folder)
        (folder / "data_batch_1").unlink()
        monkeypatch.setattr(os, "stat", None)  # 60,000 samples take seven look-ups
        assert [source.stamp(index) for index in range(7)] == expected


class TestRefusals:
    def refused(self, folder: Path, message: str, name: str = "data_batch_1") -> None:
        with pytest.raises(SourceError, match=message) as caught:
            open_cifar10(folder)
        assert name in str(caught.value)

    def test_no_folder_and_no_batches(self, tmp_path, folder):
        self.refused(tmp_path / "none", "holds no CIFAR-10", "batches.meta")
        (folder / "data_batch_1").unlink()
        self.refused(folder, "has no batches: none of data_batch_1")

    @pytest.mark.parametrize(
        "change",
        [
            {"data": np.zeros((4, 3072), np.float32)},
            {"data": np.zeros((4, 3072), np.int8)},
            {"data": np.zeros((4, 3071), np.uint8)},
            {"data": np.zeros((3, 3072), np.uint8)},
            {"data": np.zeros((4, 3, 32, 32), np.uint8)},
            {"data": np.zeros((4, 3072), object)},
            {"data": [[0] * 3072] * 4},
            {"data": None},
            {"labels": [0, 1, 2]},
            {"labels": [0, 1, 2, 3]},
            {"labels": [0, 1, 2, -1]},
            {"labels": [0, 1, 2, 0.0]},
            {"labels": "abcd"},
            {"labels": None},
        ],
        ids=lambda change: repr(change)[:50],
    )
    def test_arrays_and_labels_of_the_wrong_kind(self, folder, change):
        (folder / "data_batch_1").write_bytes(pickle.dumps(batch() | change, 2))
        self.refused(folder, "not a CIFAR-10 batch|Cannot read")

    @pytest.mark.parametrize("content", [[1, 2], None, "text", np.zeros(3, np.uint8)], ids=repr)
    def test_anything_but_a_dict(self, folder, content):
        (folder / "data_batch_1").write_bytes(pickle.dumps(content, 2))
        self.refused(folder, "Cannot read .*not a dict")

    @pytest.mark.parametrize(
        "names", [None, [], "airplane", [1, 2], ["cat", "cat"], ["cat", None]], ids=repr
    )
    def test_label_names_of_the_wrong_kind(self, folder, names):
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, 2))
        self.refused(folder, "no list of different label names", "batches.meta")

    def test_every_cut_and_many_flips_are_a_source_error_or_data(self, folder):
        content = pickle.dumps(batch(2), 2)
        dice = random.Random(0)
        damaged = [content[:length] for length in range(0, len(content), 97)]
        for _ in range(300):
            copy = bytearray(content)
            copy[dice.randrange(len(copy)) if dice.random() < 0.3 else dice.randrange(300)] ^= (
                1 << dice.randrange(8)
            )
            damaged.append(bytes(copy))
        for case in damaged:
            (folder / "data_batch_1").write_bytes(case)
            with contextlib.suppress(SourceError):
                assert open_cifar10(folder).images.shape == (2, 32, 32, 3)


class Attack:
    """Pickles as a call of anything."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class TestAttacks:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize("where", ["batches.meta", "data_batch_1"])
    def test_a_command_is_not_run(self, folder, protocol, where):
        witness = folder / "witness"
        attack = Attack(os.system, f"touch '{witness}'")
        (folder / where).write_bytes(pickle.dumps({"data": attack}, protocol))
        with pytest.raises(SourceError, match=f"{where}.*asks for .*system.*not plain data"):
            open_cifar10(folder)
        assert not witness.exists()

    @pytest.mark.parametrize(
        ("module", "name"),
        [
            ("builtins", "eval"),
            ("builtins", "getattr"),
            ("posix", "system"),
            ("numpy", "load"),
            ("numpy", "frombuffer"),
            ("numpy", "core.multiarray.fromfile"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy", "ndarray.tofile"),
            ("numpy.lib.npyio", "DataSource"),
            ("_codecs", "decode"),
            ("_codecs", "lookup"),
            ("copyreg", "_reconstructor"),
            ("functools", "partial"),
            ("featx.images.sources.arrays", "_load"),
        ],
    )
    def test_no_other_global_is_found(self, folder, module, name):
        for content in (f"c{module}\n{name}\n.".encode(), pickle_global(module, name)):
            (folder / "data_batch_1").write_bytes(content)
            with pytest.raises(SourceError, match="which is not plain data"):
                open_cifar10(folder)

    def test_numpys_own_constructors_cannot_be_called(self, folder):
        # ndarray((1,), object, b"AAAAAAAA") is an array that takes the bytes for a pointer: to look
        # at it crashes the process.
        attack = Attack(np.ndarray, (4, 3072), np.dtype("u1"), b"A" * 4 * 3072)
        (folder / "data_batch_1").write_bytes(pickle.dumps(batch() | {"data": attack}, 2))
        with pytest.raises(SourceError, match="data_batch_1"):
            open_cifar10(folder)
        attack = Attack(np.ndarray, (1,), np.dtype("O"), b"A" * 8)
        (folder / "data_batch_1").write_bytes(pickle.dumps({"labels": attack, "data": attack}, 2))
        with pytest.raises(SourceError, match="data_batch_1"):
            open_cifar10(folder)

    @pytest.mark.parametrize("shape", [(2**40, 3072), (-1, 3072), (4, 3072, 0), "x", (4.0, 3072)])
    def test_shapes_that_do_not_fit_the_content(self, folder, shape):
        class Claims:
            def __reduce__(self) -> Any:
                function, arguments, (version, _, *rest) = np.zeros(
                    (2, 3072), np.uint8
                ).__reduce__()
                return function, arguments, (version, shape, *rest)

        (folder / "data_batch_1").write_bytes(pickle.dumps(batch() | {"data": Claims()}, 2))
        with pytest.raises(SourceError, match="data_batch_1"):
            open_cifar10(folder)

    def test_other_encodings_are_not_looked_up(self, folder):
        attack = Attack(__import__("_codecs").encode, "x" * 1000, "idna")
        (folder / "data_batch_1").write_bytes(pickle.dumps({"data": attack}, 2))
        with pytest.raises(SourceError, match="encoding 'idna'"):
            open_cifar10(folder)

    def test_a_claimed_length_takes_no_memory(self, folder):
        for opcode, size in ((b"\x8e", 8), (b"\x8d", 8), (b"T", 4), (b"X", 4)):
            content = b"\x80\x04" + opcode + (2 ** (size * 8 - 1) - 1).to_bytes(size, "little")
            (folder / "data_batch_1").write_bytes(content + b"x.")
            with pytest.raises(SourceError, match="data_batch_1"):
                open_cifar10(folder)


def pickle_global(module: str, name: str) -> bytes:
    """Return a protocol-4 pickle of a global, dotted names included."""
    parts = (b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name))
    return b"\x80\x04" + b"".join(parts) + b"\x93."


@pytest.mark.real_data
def test_the_real_subset(data):
    source = open_source(f"cifar10:{data / 'cifar10_subset'}")
    assert len(source.classes) == 10
    assert source.classes[:3] == ("airplane", "automobile", "bird")
    splits = [sample.split for sample in source.samples]
    assert (splits.count("train"), splits.count("test"), splits.count("val")) == (8068, 1017, 0)
    assert len({sample.sample_id for sample in source.samples}) == 9085
    # The first image is the well-known frog.
    first = source.read(0)
    assert isinstance(first, np.ndarray)
    assert source.classes[source.samples[0].label] == "frog"
    assert first[0, 0].tolist() == [59, 62, 63]
