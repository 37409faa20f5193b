"""The type of a task, its labels and targets, and how its scores are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from operator import add
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from featx.errors import SourceError, listed
from featx.heads.samples.folds import HeldOut
from featx.heads.tasks.calibration import Calibration
from featx.heads.tasks.losses import Loss
from featx.heads.tasks.scores import Scores
from featx.images.sources import SPLITS

Solver = Literal["lbfgs", "sklearn", "ridge", "centroid", "sgd"]
TaskName = Literal["single-label", "multi-label", "regression"]
Details = Mapping[str, Any]
"""Details of the header of a head or a classifier."""
_SHOWN = 10
_USUAL = 0.9
"""Share of images whose outputs are usual."""
_VALUES_AT_ONCE = 2**24
"""Outputs that are scored at once."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels as a source has them."""

    classes: Sequence[str]  # the distinct labels
    index: np.ndarray  # of each sample's label in classes, (N,); -1 where unlabelled
    sample_ids: Sequence[str]
    origin: str  # for messages

    @property
    def used(self) -> list[int]:
        """Indices of the labels that some sample has, ascending."""
        return [int(label) for label in np.unique(self.index[self.index >= 0])]

    def require_known(self, unknown: Sequence[str], names: Sequence[str], things: str) -> None:
        """Refuse classes or tags that a head does not have."""
        if unknown:
            raise SourceError(
                f"'{self.origin}' has {things} that the model does not know: "
                f"{', '.join(unknown[:5])}. The model knows {', '.join(names[:10])}."
            )


@dataclass(frozen=True, eq=False)
class Targets:
    """Labels as a task reads them.

    Values are class indices ``(N,)`` int64, tags ``(N, num_tags)`` uint8, or numbers ``(N,
    num_targets)`` float64; undefined where unlabelled.
    """

    task: Task
    names: tuple[str, ...]  # of the outputs: classes, tags or targets
    values: np.ndarray
    labelled: np.ndarray  # (N,) bool


class Column(NamedTuple):
    """A column of a table of scores."""

    title: str
    fields: tuple[str, ...]
    format: str = ".4f"
    is_main: bool = False

    def text(self, scores: object) -> str:
        """Return the cell of some scores: a number, or an interval of two; a dash for none."""
        values = [getattr(scores, field) for field in self.fields]
        return "–" if None in values else "–".join(format(value, self.format) for value in values)


IMAGES = Column("images", ("num_samples",), ",")
PRECISION_RECALL = (
    Column("precision", ("precision",)),
    Column("95 %", ("precision_low", "precision_high")),
    Column("recall", ("recall",)),
    Column("95 %", ("recall_low", "recall_high")),
)


class Encoding(Protocol):
    """Training targets as a solver takes them, and the way back to the task's outputs."""

    @property
    def values(self) -> np.ndarray:
        """Class indices ``(N,)``; tags or numbers ``(N, num_outputs)``."""

    @property
    def num_outputs(self) -> int:
        """Number of outputs that the solver fits."""

    @property
    def unit(self) -> tuple[list[float], list[float]] | None:
        """Mean and deviation of each target of a regression; None for other tasks."""

    def decode_layer(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the last layer ``(num_outputs, in)``, ``(num_outputs,)`` for the task."""

    def decode(self, outputs: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the outputs and targets of some samples ``(n, num_outputs)`` for the task."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """How the outputs of a head are read from labels, trained, scored, compared and shown.

    Targets are class indices ``(N,)``, tags or numbers ``(N, num_outputs)``; outputs are logits or
    values ``(N, num_outputs)``.

    Attributes:
        name: In headers, options and on the command line.
        output: What one output is called.
        answer: Noun for the decision about an image, for messages.
        other_answer: The same for another decision.
        raw_output: The ONNX output that the last layer gives.
        activation: ONNX operator from logits to probabilities; None where there are none.
        shift_invariant: Whether logits mean the same with a constant added to all of an image.
        loss: What training minimises.
        solvers: Solvers of a linear head, the default first.
        has_classes: Whether class weights and few-shot draws are supported.
        not_held_out: Reason why no sample could be held out, for messages.
        score: Name of the measure of ``accuracy``.
        names_of: Names of the outputs that distinct labels give.
        read_values: Targets of samples, of the outputs of a head where their names are given.
        has: Whether targets ``(N, …)`` have an output, given by index, ``(N,)`` bool.
        canonical: One spelling of labels that mean the same.
        knows: Whether a head with outputs of these names can be scored on a label.
        require_trainable: Refuse training targets that tell nothing apart, and warn of outputs
            that will be constant; with the names of the outputs and the origin of the labels.
        encode: Training targets of so many outputs as a solver takes them.
        calibrate: The temperature of a ``HeldOut``, as ``calibration.calibrate``; None without
            probabilities.
        choose_thresholds: The threshold of each tag, from what was held out; empty without tags.
        thresholds_of: The same from the details of a header.
        summarise: Labelled samples reduced to what ``measure_parts`` needs.
        adds_up: The sum of two summaries is that of the samples of both.
        measure_parts: Scores of samples that were summarised in parts, of so many outputs, with
            the thresholds.
        statistics: Of samples, for ``paired_differences``: a loss, whose mean is a score, and of
            tasks with probabilities the gap of each of their bins, ``(n, 1 + num_bins)``.
        scores: Types of the scores of a split and of one output, and the field of the latter.
        columns: How the scores of a split are shown; 95 % is the interval of the score before.
        output_columns: How the scores of one output are shown.
        rank: Sort key of scores, the best first.
        probabilities: From logits.
        logits: From probabilities.
        comparable: Outputs in the unit in which two heads are compared: logits, or deviations.
        vary: Which of so many outputs differ between training targets, bool.
        agree: How far two comparable outputs decide the same, ``(n,)`` in [0, 1].
        settled: Whether they decide the same, or miss it by no more than a bound, ``(n,)`` bool.
        same_untrained: Whether they decide the same on outputs that were not trained, given by
            index, up to a share of their size; ``(n,)`` bool.
        accuracy: How good comparable outputs are, at most 1.
    """

    name: TaskName
    output: str
    answer: str
    other_answer: str
    raw_output: str
    activation: Literal["Softmax", "Sigmoid"] | None
    shift_invariant: bool
    loss: Loss
    solvers: tuple[Solver, ...]
    has_classes: bool
    not_held_out: str
    score: str
    names_of: Callable[[Sequence[str]], tuple[str, ...]]
    read_values: Callable[[Labels, Sequence[str] | None], np.ndarray]
    has: Callable[[np.ndarray, int], np.ndarray]
    canonical: Callable[[str], str]
    knows: Callable[[str, Sequence[str]], bool]
    require_trainable: Callable[[np.ndarray, Sequence[str], str], None]
    encode: Callable[[np.ndarray, int], Encoding]
    calibrate: Callable[..., Calibration] | None = None
    choose_thresholds: Callable[[HeldOut | None, int], tuple[float, ...]] = lambda *_: ()
    thresholds_of: Callable[[Details, int], tuple[float, ...]] = lambda *_: ()
    summarise: Callable[[np.ndarray, np.ndarray], Any] = lambda *both: both
    adds_up: bool = False
    measure_parts: Callable[[Sequence[Any], int, Sequence[float]], Scores]
    statistics: Callable[[np.ndarray, np.ndarray], np.ndarray]
    scores: tuple[type[Any], type[Any], str]
    columns: tuple[Column, ...]
    output_columns: tuple[Column, ...]
    rank: Callable[[Any], tuple[float, float]]
    probabilities: Callable[[np.ndarray], np.ndarray]
    logits: Callable[[np.ndarray], np.ndarray]
    comparable: Callable[[np.ndarray, Details], np.ndarray] = lambda outputs, _: outputs
    vary: Callable[[np.ndarray, int], np.ndarray] = lambda values, _: np.ptp(values, axis=0) > 0
    agree: Callable[[np.ndarray, np.ndarray, Details], np.ndarray]
    settled: Callable[[np.ndarray, np.ndarray, float, Details], np.ndarray]
    same_untrained: Callable[[np.ndarray, np.ndarray, np.ndarray, float, Details], np.ndarray]
    accuracy: Callable[[np.ndarray, np.ndarray, Details], float]

    def __reduce__(self) -> tuple[Any, ...]:
        return _named, (self.name,)  # its functions cannot be pickled; a copy is the task itself

    @property
    def outputs(self) -> str:
        """Plural of ``output``."""
        return "classes" if self.output == "class" else f"{self.output}s"

    def read(self, labels: Labels, *, names: Sequence[str] | None = None) -> Targets:
        """Return the targets of samples, of the outputs of a head where their names are given.

        Raises:
            SourceError: A label cannot be read, or names what the head does not know.
        """
        values = self.read_values(labels, names)
        own = self.names_of(labels.classes) if names is None else tuple(names)
        return Targets(self, own, values, labels.index >= 0)

    def trained_outputs(self, targets: np.ndarray, num_outputs: int) -> np.ndarray:
        """Return which outputs the labelled training targets train, ``(num_outputs,)`` bool.

        Others have logits of another order of magnitude: a class without training rows is never
        predicted, and a tag or target that is the same in all rows is constant.
        """
        return self.vary(targets, num_outputs) if len(targets) else np.ones(num_outputs, bool)

    def typical_size(self, expected: np.ndarray, trained: np.ndarray) -> float:
        """Return how large differences between outputs are, at least 1: bounds are a share of it.

        For each image it is the spread between its logits; for tags and numbers, which are not
        compared with each other, twice the distance from 0. With three or more, the farthest is
        left out, and so is a tenth of the images, so that no absurd output widens a bound.
        """
        values = expected[:, trained] if trained.any() else expected
        values = values[np.isfinite(values).all(axis=1)]
        if not len(values):
            return 1.0
        best = values.max(axis=1, keepdims=True)
        sizes = best - values if self.shift_invariant else 2 * np.abs(values)
        farthest = np.sort(sizes, axis=1)[:, -2 if sizes.shape[1] >= 3 else -1]
        return max(1.0, float(np.quantile(farthest, _USUAL, method="lower")))

    def measure(
        self, outputs: np.ndarray, targets: np.ndarray, *, thresholds: Sequence[float] = ()
    ) -> Scores | None:
        """Return the scores of labelled samples, None if there are none."""
        scorer = Scorer(self, thresholds)
        at_once = max(1, _VALUES_AT_ONCE // outputs.shape[1])
        for start in range(0, len(outputs), at_once):
            scorer.add(outputs[start : start + at_once], targets[start : start + at_once])
        return scorer.scores()

    def measure_splits(
        self,
        outputs: np.ndarray,
        targets: np.ndarray,
        splits: np.ndarray,
        *,
        thresholds: Sequence[float] = (),
    ) -> dict[str, Scores]:
        """Return the scores of each split that has samples, as ``measure``.

        ``splits``, ``(N,)``, are indices into ``images.sources.SPLITS``.
        """
        scores = {}
        for number, split in enumerate(SPLITS):
            rows = splits == number
            if own := self.measure(outputs[rows], targets[rows], thresholds=thresholds):
                scores[split] = own
        return scores

    def scores_from_dict(self, values: Mapping[str, Any]) -> Scores:
        """Return the scores of which ``to_dict`` made ``values``, perhaps in a later featx."""
        of_all, of_each, each = self.scores
        own = tuple(of_each(**_known(of_each, scores)) for scores in values[each])
        scores: Scores = of_all(**_known(of_all, values) | {each: own})
        return scores


def _known(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a dataclass has fields for."""
    return {field.name: values[field.name] for field in fields(kind)}


class Scorer:
    """Scores of samples that come a few at a time."""

    def __init__(self, task: Task, thresholds: Sequence[float] = ()) -> None:
        self._task, self._thresholds = task, thresholds
        self._parts: list[Any] = []
        self._num_outputs = 0

    def add(self, outputs: np.ndarray, targets: np.ndarray) -> None:
        """Take in outputs ``(n, num_outputs)`` and targets ``(n, …)`` of labelled samples."""
        self._take([self._task.summarise(outputs, targets)])
        self._num_outputs = outputs.shape[1]

    def merge(self, other: Scorer) -> None:
        """Take in the samples of another."""
        self._take(other._parts)
        self._num_outputs = self._num_outputs or other._num_outputs

    def _take(self, parts: Sequence[Any]) -> None:
        self._parts += parts
        if self._task.adds_up and len(self._parts) > 1:
            self._parts = [reduce(add, self._parts)]

    def scores(self) -> Scores | None:
        """Return the scores of all samples, None if there are none."""
        if not self._parts:
            return None
        return self._task.measure_parts(self._parts, self._num_outputs, self._thresholds)


def joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs and targets of all parts, each in one array."""
    outputs, targets = zip(*parts, strict=True)
    return np.concatenate(outputs), np.concatenate(targets)


def quoted(names: Sequence[str]) -> str:
    """Return names in quotes, of many the first ten."""
    return listed(list(map(repr, names)), _SHOWN)


def _named(name: str) -> Task:
    from featx.heads.tasks import TASKS

    return TASKS[name]
