"""Images that cannot be used: what is remembered of them, and what is tried again."""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featx.errors import BadImages, ImageError
from featx.extraction import crops
from featx.extraction.options import ExtractOptions
from featx.features.file import open_features
from featx.features.journal import Journal
from featx.features.records import RowLayout
from featx.images.sources.sample import FileSource
from featx.stages.extract import extract

OPTIONS = ExtractOptions(backbone="tiny", on_error="skip", workers=1)
NAMES = ("ants/000.jpg", "ants/001.jpg", "bees/000.jpg")


@pytest.fixture
def source(photos: Callable[..., Path]) -> Path:
    root = photos({"ants": 2, "bees": 1})
    shutil.copy(root / NAMES[0], root / "ants" / "same.jpg")
    return root


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Have the first image fail to be decoded, by an error that something else led to."""
    decoded = crops.decoded

    def fail(cause: BaseException) -> None:
        def decoding(content: bytes, **options: object) -> object:
            if options["sample_id"] == NAMES[0]:
                raise ImageError(NAMES[0], "cannot be decoded.") from cause
            return decoded(content, **options)

        monkeypatch.setattr(crops, "decoded", decoding)

    return fail


@pytest.fixture
def repaired(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    decoded = crops.decoded
    return lambda: monkeypatch.setattr(crops, "decoded", decoded)


PASSING = [
    MemoryError(),
    OSError("out of memory error when reading image file"),
    OSError(errno.ENOMEM, "no memory"),
    OSError(errno.EIO, "I/O error"),
    OSError(errno.EMFILE, "too many files"),
    RuntimeError("Pixel allocation failed: Out of memory"),
    TimeoutError("too slow"),
    ModuleNotFoundError("no such package"),
]


@pytest.mark.parametrize("cause", PASSING, ids=repr)
def test_what_lies_in_the_machine_is_tried_again(
    *, source, tmp_path, failing, repaired, cause, caplog
):
    output = tmp_path / "f.h5"
    failing(cause)
    with caplog.at_level(logging.WARNING):
        report = extract(source, output, OPTIONS)
    assert [name for name, _ in report.skipped] == [NAMES[0], "ants/same.jpg"]  # of one content
    assert "2 images are left out for reasons other than content" in caplog.text
    assert not any(image.is_permanent for image in open_features(output).skipped)
    again = extract(source, output, OPTIONS)
    assert (again.is_unchanged, len(again.skipped)) == (False, 2)
    repaired()
    report = extract(source, output, OPTIONS)
    assert (report.skipped, report.num_images, report.num_new) == ((), 4, 2)
    assert extract(source, output, OPTIONS).is_unchanged


def test_what_lies_in_the_bytes_is_remembered(source, tmp_path, failing, repaired):
    output = tmp_path / "f.h5"
    failing(SyntaxError("broken PNG file"))
    extract(source, output, OPTIONS)
    assert all(image.is_permanent for image in open_features(output).skipped)
    repaired()
    assert extract(source, output, OPTIONS).is_unchanged
    (source / NAMES[0]).chmod(0o600)
    assert len(extract(source, output, OPTIONS).skipped) == 2  # hashed once more, not decoded
    assert extract(source, output, replace(OPTIONS, verify_content=True)).skipped == ()


def test_a_log_has_nobody_wait_for_an_image_that_had_no_memory(source, tmp_path, failing, repaired):
    output = tmp_path / "f.h5"
    failing(MemoryError())
    with pytest.raises(BadImages, match="2 of 4 images"):
        extract(source, output, replace(OPTIONS, on_error="fail"))
    with Journal(output, layout=RowLayout((192,))) as journal:
        digests = np.concatenate([batch.digests for batch in journal.batches()])
    assert digests.any(axis=1).tolist() == [False, True, False, True]
    repaired()
    report = extract(source, output, replace(OPTIONS, on_error="fail"))
    assert (report.num_resumed, report.num_extracted, report.num_duplicates) == (2, 1, 1)


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "I/O error"), PermissionError(errno.EACCES, "no"), MemoryError()]
)
def test_a_file_that_cannot_be_read_is_tried_without_the_backbone(
    source, tmp_path, monkeypatch, error
):
    output, read, calls = tmp_path / "f.h5", FileSource.read, []

    def reading(self: FileSource, index: int) -> bytes:
        if self.samples[index].sample_id == NAMES[2]:
            calls.append(index)
            raise ImageError(NAMES[2], "cannot be read.") from error
        return read(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(FileSource, "read", reading)
        assert [name for name, _ in extract(source, output, OPTIONS).skipped] == [NAMES[2]]
        assert extract(source, output, OPTIONS).is_unchanged
        assert len(calls) == 2
    assert extract(source, output, OPTIONS).skipped == ()


def test_no_memory_to_resize_an_image(source, tmp_path, monkeypatch):
    output, preprocess = tmp_path / "f.h5", crops.preprocess

    def resizing(pixels: object, spec: object) -> np.ndarray:
        if np.asarray(pixels).tobytes() == first:
            raise MemoryError
        return preprocess(pixels, spec)

    first = np.asarray(Image.open(source / NAMES[0])).tobytes()
    with monkeypatch.context() as patch:
        patch.setattr(crops, "preprocess", resizing)
        assert len(extract(source, output, OPTIONS).skipped) == 2
    assert extract(source, output, OPTIONS).skipped == ()


def test_a_higher_limit_of_pixels_brings_images_back(source, tmp_path):
    output = tmp_path / "f.h5"
    Image.new("RGB", (100, 90)).save(source / "bees" / "large.png")
    low, high = (replace(OPTIONS, max_pixels=number) for number in (60 * 60, 100 * 90))
    assert [name for name, _ in extract(source, output, low).skipped] == ["bees/large.png"]
    assert extract(source, output, low).is_unchanged
    report = extract(source, output, high)
    assert (report.skipped, report.num_extracted) == ((), 1)
    assert extract(source, output, high).is_unchanged


DECODE = """
import resource, sys
from pathlib import Path
from PIL import Image
from featx.errors import ImageError
from featx.images.decode import decoded
Image.init()
content = Path(sys.argv[1]).read_bytes()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]) * 2**20,) * 2)
try:
    decoded(content, sample_id="a")
    print("decoded")
except ImageError as err:
    print(err.is_permanent, err.reason)
"""


@pytest.mark.parametrize(
    ("kind", "megabytes"), [("JPEG", 80), ("WEBP", 40), ("PNG", 40), ("AVIF", 40)]
)
def test_decoders_that_take_want_of_memory_for_damage(tmp_path, kind, megabytes):
    """A progressive JPEG is "a broken data stream" then, and a WebP has no decoder."""
    path, side = tmp_path / "large", 4000
    with io.BytesIO() as file:
        options = {"progressive": True} if kind == "JPEG" else {}
        Image.new("RGB", (side, side), (200, 30, 30)).save(file, kind, **options)
        whole = file.getvalue()

    def decode(content: bytes, limit: int) -> str:
        path.write_bytes(content)
        command = [sys.executable, "-c", DECODE, path, str(limit)]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ
        ).stdout

    assert decode(whole, megabytes).startswith("False ")
    assert decode(whole, 1000) == "decoded\n"
    assert decode(whole[: len(whole) // 2], 8000).startswith("True ")
