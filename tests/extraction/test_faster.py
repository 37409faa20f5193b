"""The line about settings that would make a run faster, measured while it goes on."""

from __future__ import annotations

import dataclasses
import io
import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import featx_cli
from PIL import Image

from featx.backbones.engines import OnnxEngine
from featx.backbones.graph_cache import read_graph
from featx.errors import ImageError
from featx.extraction import faster
from featx.extraction.backbone import LazyBackbone
from featx.extraction.crops import Spent
from featx.extraction.faster import Advice
from featx.extraction.options import ExtractOptions


def jpeg(side: int) -> bytes:
    noise = np.random.default_rng(side).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((side, side)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def advice(monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes one for a run of ``tiny`` over a million photos."""
    monkeypatch.setattr(faster, "_SETTLED", 0.0)
    spec = LazyBackbone(ExtractOptions(backbone="tiny").resolved()).spec()
    graph = read_graph(spec)
    assert graph is not None
    engine = OnnxEngine(graph)

    def make(content: bytes) -> Advice:
        source: Any = SimpleNamespace(read=lambda _: content)
        return Advice(source, np.arange(1_000_000), spec, engine, 64, 2, 2, 10**8)

    return make


def spent(**seconds: float) -> Spent:
    found = Spent()
    found.seconds.update(seconds)
    return found


def after(advice: Advice, count: int, seconds: Spent) -> None:
    """Tell of ``count`` images that took two workers these seconds, without a pause."""
    advice._start = time.perf_counter() - sum(seconds.seconds.values()) / 2
    advice.after(count, seconds)


def said(advice: Advice, seconds: Spent, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what is logged after 1,000 images that took these seconds in all."""
    caplog.set_level("INFO", "featx")
    after(advice, 1000, seconds)
    if advice._thread:
        advice._thread.join()
    after(advice, 1001, seconds)
    after(advice, 1002, seconds)
    return [record.getMessage() for record in caplog.records if "Faster" in record.getMessage()]


def test_large_photos_are_said_to_be_faster_scaled_once(advice, caplog):
    (line,) = said(advice(jpeg(2000)), spent(decode=100, inference=10), caplog)
    assert line.startswith("Faster here: decode='scaled' about ")
    assert 1.5 <= float(line.split("about ")[1].split()[0]) < 11


def test_small_photos_are_not(advice, caplog):
    assert said(advice(jpeg(40)), spent(decode=100, inference=10), caplog) == []


def test_what_int8_brings_is_measured_on_this_processor(advice, caplog, monkeypatch):
    monkeypatch.setattr(faster, "_WORTH", 1.1)
    (line,) = said(advice(jpeg(64)), spent(decode=5, inference=200), caplog)
    assert "precision='int8' about " in line
    assert "decode" not in line


def test_int8_is_not_named_where_features_would_be_others(advice, caplog, monkeypatch):
    monkeypatch.setattr(faster, "_WORTH", 1.1)
    monkeypatch.setattr(faster, "_MOST_LOSS", -1)
    assert said(advice(jpeg(64)), spent(decode=5, inference=200), caplog) == []


@pytest.mark.parametrize("step", ["read", "journal"])
def test_nothing_is_promised_that_reading_or_writing_would_hold_up(step, advice, caplog):
    seconds = spent(decode=100, **{step: 210 if step == "read" else 90})
    assert said(advice(jpeg(2000)), seconds, caplog) == []


def test_time_that_workers_wait_is_not_promised_away(advice, caplog):
    watched = advice(jpeg(2000))
    watched._gains.append(("decode='scaled'", "decode", 100.0))
    caplog.set_level("INFO", "featx")
    watched._say(spent(decode=30), wall=50)
    assert not caplog.records
    watched._say(spent(decode=90), wall=50)
    assert "about 9." in caplog.text


@pytest.mark.parametrize(("left", "is_measured"), [(100, False), (100_000, True)])
def test_only_a_long_run_is_measured(left, is_measured, advice):
    watched = advice(jpeg(2000))
    watched.todo = watched.todo[: 1000 + left]
    after(watched, 1000, spent(decode=100, inference=10))
    watched.close()
    assert bool(watched._thread) == is_measured


def test_images_that_cannot_be_used_end_the_measurement(advice, caplog):
    def fail(_: int) -> bytes:
        raise ImageError("a.jpg", "gone.")

    watched = advice(b"")
    watched.images = SimpleNamespace(read=fail)
    assert said(watched, spent(decode=100, inference=100), caplog) == []
    assert said(advice(b"no image"), spent(decode=100, inference=100), caplog) == []


@pytest.mark.parametrize(
    ("decode", "precision", "is_measured"),
    [("scaled", "bf16", False), ("scaled", "fp32", True), ("full", "bf16", True)],
)
def test_only_what_is_not_set_already_is_measured(decode, precision, is_measured, advice):
    watched = advice(jpeg(2000))
    preprocess = dataclasses.replace(watched.spec.preprocess, decode=decode)
    watched.spec = dataclasses.replace(watched.spec, preprocess=preprocess, precision=precision)
    after(watched, 1000, spent(decode=100, inference=100))
    watched.close()
    assert bool(watched._thread) == is_measured


def test_a_run_that_ends_waits_for_no_more_than_a_step(advice):
    watched = advice(jpeg(2000))
    after(watched, 1000, spent(decode=100, inference=100))
    watched.close()
    assert not watched._thread.is_alive()
    assert not watched._gains


class AtOnce:
    """A thread that has ended when it has begun."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...], daemon: bool) -> None:
        self._work = lambda: target(*args)

    def start(self) -> None:
        self._work()

    def is_alive(self) -> bool:
        return False

    def join(self) -> None:
        pass


@pytest.mark.parametrize("more", [(), ("-q",)])
def test_the_command_says_it_in_one_line_unless_it_is_to_be_quiet(more, tmp_path, monkeypatch):
    for name in ("ants", "bees"):
        (tmp_path / name).mkdir()
        for number in range(6):
            side = 1500 + 8 * number + 64 * (name == "bees")
            (tmp_path / name / f"{number}.jpg").write_bytes(jpeg(side))
    monkeypatch.setattr(faster, "_SETTLED", 0.0)
    monkeypatch.setattr(faster, "_SHARE", 1e6)
    monkeypatch.setattr(faster, "_WORTH", 1.0)
    monkeypatch.setattr(faster, "Thread", AtOnce)
    output = tmp_path / "f.h5"
    result = featx_cli("extract", tmp_path, "-b", "tiny", "-o", output, "--batch-size", 1, *more)
    assert result.exit_code == 0, result.output
    lines = re.findall("^Faster here: --decode scaled about ", result.stderr, re.MULTILINE)
    assert len(lines) == (0 if more else 1)
