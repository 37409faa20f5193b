"""Images with the same content and several labels."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.images.sources import Sample
from featx.stages.extract import ExtractOptions, extract
from featx.stages.extract.contents import warn_of_two_labels

TINY = ExtractOptions(backbone="tiny")
CLASSES = ("ant", "bee", "wasp")


def said(contents: list[int], labels: list[int], rows: list[int] | None = None) -> list[str]:
    """Return the warnings about images of these contents and labels, named by their number."""
    samples = [Sample(str(i), label, "train") for i, label in enumerate(labels)]
    digests = np.zeros((len(contents), 16), np.uint8)
    digests[:, 15], digests[:, 0] = np.array(contents) % 3, np.array(contents) // 3
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("featx.stages.extract.contents")
    log.addHandler(handler)
    try:
        images: Any = SimpleNamespace(samples=samples, classes=CLASSES)
        warn_of_two_labels(images, np.array(rows or range(len(contents)), np.int64), digests)
    finally:
        log.removeHandler(handler)
    return found


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 2)), max_size=12))
def test_every_content_with_several_labels_is_counted(images: list[tuple[int, int]]) -> None:
    contents, labels = [each[0] for each in images], [each[1] for each in images]
    several = sum(
        len({label for own, label in images if own == content and label >= 0}) > 1
        for content in set(contents)
    )
    warnings = said(contents, labels)
    assert len(warnings) == min(several, 1)
    if several:
        count = "1 image has" if several == 1 else f"{several} images have"
        assert warnings[0].startswith(f"{count} several labels: ")


def test_the_first_two_are_named() -> None:
    assert said([1, 2, 3, 2, 3], [0, 1, 2, 1, 0]) == [
        "1 image has several labels: '2' (wasp) and '4' (ant) have the same content. Keep the "
        "right one."
    ]
    assert said([1, 1], [0, 1], rows=[0, -1]) == []  # it cannot be used


def test_it_is_said_when_the_file_is_written(
    photos: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = photos({"ants": 2, "bees": 2})
    shutil.copy(root / "ants" / "000.jpg", root / "bees" / "copy.jpg")
    extract(root, tmp_path / "f.h5", TINY)
    assert "'ants/000.jpg' (ants) and 'bees/copy.jpg' (bees) have the same content" in caplog.text
    caplog.clear()
    assert extract(root, tmp_path / "f.h5", TINY).is_unchanged
    assert "same content" not in caplog.text
