"""Figures of the page, by day and by night."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import ImageColor

from featx.reporting import plots
from featx.reporting.summary import ClassPredictions, Map, reliability

CSS = (files("featx.reporting") / "templates" / "style.css").read_text(encoding="utf-8")
DAY, NIGHT = (dict(re.findall(r"--(\w+): (#\w+)", own)) for own in re.findall(r":root {[^}]+", CSS))
ON_SHADE = "#ffffff"
"""Of numbers on the accent colour."""


def luminance(colour: str) -> float:
    channels = np.array(ImageColor.getrgb(colour)) / 255
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def drawn(classes: int) -> Iterator[str]:
    """Yield figures of a head with so many classes."""
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, classes, (2, 60))
    share = random.random(60)
    names = [f"class {i}" for i in range(classes)]
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    rows = np.arange(60)
    seen = ClassPredictions(rows, labels, predicted, share, share, confusion)
    yield plots.plot_confusion(confusion, names)
    yield plots.plot_reliability(reliability(share, labels == predicted))
    yield plots.plot_values(share, share + 0.1, "weight")
    yield plots.plot_map(Map(random.random((60, 2)), rows, None), seen, names)
    path = [{"strength": 10.0**i, "log_loss": 0.5 + i, "top1": 0.5} for i in range(3)]
    yield plots.plot_path({"path": path, "strength": 10.0})[0].svg


@pytest.mark.parametrize("classes", [3, 30])
def test_figures_are_seen_by_day_and_by_night(classes):
    for svg in drawn(classes):
        tree = ElementTree.fromstring(svg)
        background = [each for each in tree.iter() if each.get("id") == "patch_1"]
        assert "fill: none" in ElementTree.tostring(background[0], "unicode")
        for text in (each for each in tree.iter() if each.tag.endswith("}text")):
            assert "fill: " in ElementTree.tostring(text, "unicode")  # else it is black
        used = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)) - {"none", ON_SHADE}
        assert used
        for colour in used:
            variable = re.fullmatch(r"var\(--(\w+), (#\w+)\)", colour)
            by_day = by_night = colour
            if variable:
                assert DAY[variable[1]] == variable[2]
                by_day, by_night = DAY[variable[1]], NIGHT[variable[1]]
            if variable and variable[1] == "well":  # lines of the grid
                continue
            assert contrast(by_night, NIGHT["paper"]) >= 3
            if classes <= 10:  # more have yellow among them
                assert contrast(by_day, "#ffffff") >= (2.2 if colour == "#a0aec0" else 3)


def test_a_class_is_shown_as_it_is_called():
    names = ["fill: #2b6cb0", "$x$ & <b>"]
    svg = plots.plot_confusion(np.eye(2, dtype=int), names)
    texts = [each.text for each in ElementTree.fromstring(svg).iter() if each.tag.endswith("}text")]
    assert {"$x$ & <b>", "fill: #2b6cb0"} <= set(texts)
