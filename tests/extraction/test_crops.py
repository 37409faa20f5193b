"""Processes that decode: the same crops, the same reasons, and a clear word when one is gone."""

from __future__ import annotations

import errno
import io
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featx.errors import ImageError, SourceError
from featx.extraction.crops import Decoders, Outcome, Renderer, Spent
from featx.images.decode import content_digest, decoded
from featx.images.preprocess import PreprocessSpec, preprocess
from featx.images.views import ViewsSpec

SPEC = PreprocessSpec(24, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), decode="scaled")
MAX_PIXELS = 40_000


@pytest.fixture(scope="module")
def decoders() -> Decoders:
    return Decoders(SPEC, MAX_PIXELS, batch_size=15, workers=2)


def crops_of(decoders: Decoders, contents: list[bytes]) -> tuple[np.ndarray, Outcome]:
    """Return the crops, and what else is told; the rest of the array stays as it was."""
    into = np.full((len(contents) + 2, 24, 24, 3), 77, np.uint8)
    made = decoders.crops(contents, into)
    assert (into[made.num_crops :] == 77).all()
    return into[: made.num_crops], made


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def contents() -> list[bytes]:
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (height, width, 3), np.uint8)
        for height, width in ((40, 60), (190, 170), (24, 24), (33, 35), (300, 300))
    ]
    whole = [encoded(image, kind) for image in images for kind in ("JPEG", "PNG")]
    return [*whole[:3], whole[2][:200], b"no image", *whole[3:], b""]


def here(contents: list[bytes]) -> tuple[np.ndarray, dict[int, tuple[str, bool]]]:
    crops, reasons = [], {}
    for number, content in enumerate(contents):
        try:
            image = decoded(content, sample_id="", max_pixels=MAX_PIXELS, preprocess=SPEC)
            crops.append(preprocess(image, SPEC))
        except ImageError as err:
            reasons[number] = err.reason, err.is_permanent
    return np.array(crops), reasons


def reasons_of(made: Outcome) -> dict[int, tuple[str, bool]]:
    return {number: (error.reason, error.is_permanent) for number, error in made.errors.items()}


def test_crops_and_reasons_are_those_of_this_process(decoders, contents):
    crops, reasons = here(contents)
    found, made = crops_of(decoders, contents)
    assert len(crops) == 8
    np.testing.assert_array_equal(found, crops)
    assert reasons_of(made) == reasons
    assert any("more than the 40000 allowed" in reason for reason, _ in reasons.values())
    assert min(made.spent.seconds[step] for step in ("decode", "preprocess")) > 0


def test_views_are_those_of_this_process(contents):
    views = ViewsSpec(2, ("crop", "flip", "color"))
    decoders = Decoders(SPEC, MAX_PIXELS, batch_size=15, workers=1, views=views)
    some, renderer = contents[:5], Renderer(SPEC, MAX_PIXELS, views)
    digests = [content_digest(content) for content in some]
    into = np.empty((15, 24, 24, 3), np.uint8)
    made = decoders.crops(some, into, digests)
    assert (made.num_crops, list(made.errors)) == (9, [3, 4])
    for number in range(3):
        expected = np.empty((3, 24, 24, 3), np.uint8)
        renderer.fill(expected, some[number], digests[number], "", Spent())
        assert (into[3 * number : 3 * number + 3] == expected).all()
        assert (expected[0] == here(some[number : number + 1])[0][0]).all()
    assert decoders.crops(some[:3], into).num_crops == 3  # without digests, no views
    decoders.close()


def test_no_image_and_only_bad_ones(decoders):
    assert crops_of(decoders, [])[1] == Outcome(0, {}, Spent())
    made = crops_of(decoders, [b"", b"\xff\xd8"])[1]
    assert (made.num_crops, list(made.errors)) == (0, [0, 1])


def test_threads_get_their_own_answers(decoders, contents):
    parts = [contents[number : number + 3] for number in range(len(contents))]
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda part: crops_of(decoders, part), 3 * parts))
    for (found, made), part in zip(answers, 3 * parts, strict=True):
        crops, reasons = here(part)
        assert found.tobytes() == crops.tobytes()
        assert reasons_of(made) == reasons


def test_one_that_ended_is_an_error_that_says_so(contents):
    before = len(os.listdir("/proc/self/fd"))
    decoders = Decoders(SPEC, MAX_PIXELS, batch_size=1, workers=1)
    assert crops_of(decoders, contents[:1])[1].num_crops == 1
    (process,) = decoders._processes.processes
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(
        SourceError,
        match=r"process that decodes images ended \(SIGKILL\)\. Run .* fewer workers",
    ):
        crops_of(decoders, contents[:1])
    with pytest.raises(SourceError):  # and again, since nobody keeps its memory
        crops_of(decoders, contents[:1])
    decoders.close()
    decoders.close()
    assert not Path(f"/proc/{process.pid}").exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_memory_to_share_is_an_error_that_says_so(monkeypatch):
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    for name in ("memfd_create", "truncate"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(SourceError, match=r"share memory .*: Cannot allocate memory\."):
                Decoders(SPEC, MAX_PIXELS, batch_size=4, workers=2)
