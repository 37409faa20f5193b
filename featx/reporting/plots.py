"""The figures of the page, as SVG. The only place that loads matplotlib."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from featx.errors import ConfigError, printable
from featx.packages import install_command, needed
from featx.reporting.summary import ClassPredictions, Map, Reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CONFUSION_CLASSES = 40
_WIDTH, _HEIGHT = 4.8, 4.0  # inches; a page shows them at one width
_BLUE, _ORANGE, _GREY = "#2b6cb0", "#dd6b20", "#a0aec0"
_INK, _SOFT, _LINE = "#1a202c", "#4a5568", "#edf2f7"
_VARIABLES = {_BLUE: "accent", _INK: "ink", _SOFT: "soft", _LINE: "well"}
"""Colours of style.css, by their values by day."""
_CLASSES = (  # seen by day and by night
    *("#2b7fd0", "#dd6b20", "#2e9e5b", "#d64545", "#8f63d2"),
    *("#9b6f50", "#d15fa8", "#757e8c", "#958b1a", "#1a95a6"),
)
_STYLE: Any = {
    "svg.fonttype": "none",  # real text: any script, small files, and it can be searched
    "svg.hashsalt": "featx",  # the same figure is the same file
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "axes.grid": True,
    "grid.color": _LINE,
    "axes.axisbelow": True,
}


class Drawing(NamedTuple):
    """A figure of a page: a title, an SVG element, a caption; a large one has a row of its own."""

    title: str
    svg: str
    caption: str
    large: bool = False


P = ParamSpec("P")
T = TypeVar("T")


def _styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Have a function draw in the style of the page."""

    @wraps(draw)
    def _drawn(*args: P.args, **kwargs: P.kwargs) -> T:
        from matplotlib import rc_context

        with rc_context(_STYLE):
            return draw(*args, **kwargs)

    return _drawn


@_styled
def plot_confusion(confusion: np.ndarray, classes: Sequence[str]) -> str:
    """Draw a confusion matrix ``(num_classes, num_classes)``, each row in shares of its class."""
    from matplotlib.colors import to_rgba

    totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    count = len(classes)
    side = 1.6 + 0.34 * count
    figure, axes = _figure(max(_WIDTH, side), max(_HEIGHT, side))
    axes.grid(visible=False)
    shades = np.empty((count, count, 4), np.float32)
    shades[...] = to_rgba(_BLUE)
    shades[..., 3] = shares  # over a page of any colour
    axes.imshow(shades)
    axes.set_xticks(range(count), [_short(name) for name in classes], rotation=90)
    axes.set_yticks(range(count), [_short(name) for name in classes])
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    if count <= MAX_CONFUSION_CLASSES // 2:
        for (row, column), number in np.ndenumerate(confusion):
            if number:
                colour = "white" if shares[row, column] > 0.75 else _INK
                axes.text(column, row, number, ha="center", va="center", color=colour, fontsize=8)
    return _svg(figure, f"Confusion matrix of {count} classes")


@_styled
def plot_reliability(bins: Reliability) -> str:
    """Draw how often predictions of each probability are right."""
    figure, axes = _figure(_WIDTH, _HEIGHT)
    edges = np.linspace(0, 1, len(bins.counts) + 1)
    filled = bins.counts > 0
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, label="perfect")
    axes.bar(
        (edges[:-1] + edges[1:])[filled] / 2,
        bins.accuracy[filled],
        width=0.95 * np.diff(edges)[filled],
        color=_BLUE,
        alpha=0.85,
        label="right",
    )
    axes.plot(
        bins.confidence[filled], bins.accuracy[filled], "o", color=_ORANGE, label="mean of a bin"
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="probability given", ylabel="share that is right")
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    return _svg(figure, "Reliability diagram")


@_styled
def plot_path(choice: Mapping[str, Any]) -> tuple[Drawing, ...]:
    """Return the held-out scores of each strength of a linear head, where several were tried."""
    path = choice.get("path", ())
    if len(path) < 2:
        return ()
    measure, name = ("error", "left-out") if "error" in path[0] else ("log_loss", "held-out")
    what = f"{name} {'squared error' if measure == 'error' else 'log loss'}"
    strengths = [point["strength"] for point in path]
    figure, axes = _figure(_WIDTH, _HEIGHT)
    axes.plot(strengths, [point[measure] for point in path], "o-", color=_BLUE, markersize=4)
    axes.set(xscale="log", xlabel="C, inverse L2 strength", ylabel=what)
    axes.yaxis.label.set_color(_BLUE)
    axes.axvline(choice["strength"], color=_GREY, linestyle="--", linewidth=1)
    if path[0]["top1"] is not None:
        other = axes.twinx()
        other.grid(visible=False)
        other.spines["right"].set_visible(True)
        other.plot(strengths, [point["top1"] for point in path], "s-", color=_ORANGE, markersize=4)
        other.set_ylabel(f"{name} top-1", color=_ORANGE)
    title = f"Regularisation path; C = {choice['strength']:g} was chosen"
    caption = f"Chosen by the {what}: C = {choice['strength']:g}."
    return (Drawing("Strength of the regularisation", _svg(figure, title), caption),)


@_styled
def plot_values(true: np.ndarray, predicted: np.ndarray, name: str) -> str:
    """Draw predicted over true values, ``(n,)`` each."""
    figure, axes = _figure(_WIDTH, _HEIGHT)
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    axes.plot(ends, ends, color=_GREY, linestyle="--", linewidth=1)
    axes.scatter(
        true, predicted, s=14, color=_BLUE, alpha=0.6, linewidths=0, rasterized=len(true) > 500
    )
    axes.set(xlabel=f"true {_short(name)}", ylabel="predicted")
    return _svg(figure, f"{printable(name)}: predicted over true")


@_styled
def plot_map(plane: Map, seen: ClassPredictions, classes: Sequence[str]) -> str:
    """Draw samples on a plane, coloured by label; mistakes are ringed."""
    from matplotlib import colormaps

    labels, predicted = seen.labels[plane.chosen], seen.predicted[plane.chosen]
    present = np.unique(labels)
    figure, axes = _figure(_WIDTH, _HEIGHT)
    axes.grid(visible=False)
    axes.set(xticks=[], yticks=[])
    for number, label in enumerate(present.tolist()):
        share = 0.1 + 0.8 * number / max(1, len(present) - 1)  # the ends are too dark at night
        few = len(present) <= len(_CLASSES)
        colour = _CLASSES[number] if few else colormaps["turbo"](share)
        points = plane.points[labels == label]
        axes.scatter(
            points[:, 0],
            points[:, 1],
            s=14,
            color=colour,
            alpha=0.85,
            linewidths=0,
            rasterized=len(labels) > 500,
            label=_short(classes[label]),
        )
    wrong = plane.points[labels != predicted]
    axes.scatter(wrong[:, 0], wrong[:, 1], s=36, facecolors="none", edgecolors=_INK, linewidths=0.8)
    if len(present) <= 20:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _svg(figure, "Map of the features")


def require_matplotlib() -> None:
    """Check that matplotlib is installed, or raise ``ConfigError``."""
    try:
        from matplotlib import figure as _  # noqa: F401
    except ImportError as err:
        why = needed(err, "matplotlib", install_command("report"))
        raise ConfigError(f"Figures need {why}") from err


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of a size in inches, without matplotlib's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure, title: str) -> str:
    """Return a figure as an element of a page."""
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters its own font lacks; the browser has them
        about: dict[str, Any] = {"Date": None, "Title": title}
        figure.savefig(file, format="svg", dpi=144, metadata=about, transparent=True)
    text = file.getvalue()
    svg = text[text.index("<svg") :]
    return re.sub('style="[^"]*"', lambda style: _with_variables(style[0]), svg)


def _with_variables(style: str) -> str:
    """Return a style with the colours of the page, by day or by night, where it has them."""
    for colour, name in _VARIABLES.items():
        style = style.replace(colour, f"var(--{name}, {colour})")
    return style


def _short(name: str) -> str:
    """Return a class name as a label: not too long, and no formula to matplotlib."""
    shown = printable(name)
    return (shown if len(shown) <= 24 else f"{shown[:23]}…").replace("$", r"\$")
