"""The regularisation path: each strength solved without the held-out samples, to choose one.

Strengths are solved from the strongest regularisation on. Each search is extrapolated from those
before it and inherits their estimate of the curvature, so that it takes a few passes over the
features; the folds of the cross-validation are solved side by side.

With thousands of classes a pass takes seconds. The path is then solved for a sixth of the classes,
in a thirty-sixth of the time, and for all of them only around the strength that was best there,
extrapolated from those that were solved.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from featx.errors import ConfigError
from featx.heads.samples.folds import HeldOut
from featx.heads.solvers.lbfgs import Pairs, Stopping
from featx.heads.solvers.logistic import Logistic, Problems
from featx.heads.tasks.losses import SOFTMAX

log = logging.getLogger(__name__)

_AHEAD = 0.7
"""Share of the last change along the path by which the next start is moved on."""
_ON_THE_WAY = Stopping(gradient=1e-7, decrement=5e-5, max_iterations=200)
_MANY_MULTIPLICATIONS = 2**34
"""Multiplications of a pass above which strengths are narrowed down on some classes."""
_SOME_CLASSES, _CLASSES_PER_CHOSEN = 128, 6
_FEW_STRENGTHS = 4

Step = Callable[[str], None]
"""Called with the step under way."""


@dataclass(frozen=True)
class PathPoint:
    """One strength of the path, solved on the samples that were not held out.

    Attributes:
        strength: ``C``.
        log_loss: On the held-out samples, nats.
        top1: On the held-out samples, in [0, 1]; None for tags.
        objective: At the solution, mean over folds; None if unknown.
        gradient_norm: Largest absolute component of its gradient, over all folds; None if unknown.
    """

    strength: float
    log_loss: float
    top1: float | None
    objective: float | None
    gradient_norm: float | None


@dataclass(frozen=True, eq=False)
class Solved:
    """One strength on every fold.

    Attributes:
        point: Its scores.
        penalties: Factors of the objectives' penalty, ``(num_folds,)``.
        variables: ``(num_folds, num_variables)``.
        curvature: Pairs of each fold's search.
        held_out: Outputs of each fold's solution for the samples it left out.
    """

    point: PathPoint
    penalties: np.ndarray
    variables: np.ndarray
    curvature: tuple[Pairs, ...]
    held_out: HeldOut


def follow_path(
    samples: Logistic,
    strengths: Sequence[float],
    *,
    step: Step | None = None,
) -> tuple[Solved, tuple[PathPoint, ...]]:
    """Return the best strength and the path, weakest ``C`` first.

    Raises:
        ConfigError: There are no strengths.
    """
    strengths = sorted(map(float, strengths))
    classes = _some_classes(samples, strengths)
    if classes is None:
        path, best = _solve_each(samples, strengths, step)
    else:
        path, best = _solve_around(samples, strengths, classes, step)
    if len(strengths) > 1 and best.point.strength in (strengths[0], strengths[-1]):
        log.info("The best strength C=%g is at the end of the range tried.", best.point.strength)
    return best, tuple(path)


def takes_seconds(samples: Logistic, *, num_folds: int = 1) -> bool:
    """Return whether there are so many classes that a pass over the folds takes seconds."""
    work = num_folds * samples.multiplications
    return samples.num_classes >= 2 * _SOME_CLASSES and work >= _MANY_MULTIPLICATIONS


def with_all_samples(best: Solved, some: Logistic, everything: Logistic) -> Solved:
    """Return a solution moved to all samples, as far as the means of classes tell.

    Of a class of three samples, one is a third of what its weights depend on. ``some`` hold
    samples out, ``everything`` none.
    """
    shape = _Shape.of(some, best.variables)
    change = everything.class_means(np.array([-1])) - some.class_means(some.held_out_folds)
    shaped = best.variables.reshape(*change.shape[:2], -1).copy()
    shaped[:, :, :-1] += change * shape.stretch[:, None]
    return replace(best, variables=shaped.reshape(best.variables.shape))


def _solve_each(
    samples: Logistic, strengths: Sequence[float], step: Step | None
) -> tuple[list[PathPoint], Solved]:
    """Return the whole path of ascending strengths, and the solution at the best."""
    path, best = [], None
    for solved in _solve_all(samples, strengths, step):
        path.append(solved.point)
        if best is None or solved.point.log_loss < best.point.log_loss:
            best = solved
    if best is None:
        raise ConfigError("there are no strengths C to choose from.")
    return path, best


def _solve_all(
    samples: Logistic,
    strengths: Sequence[float],
    step: Step | None,
    *,
    note: str = "",
) -> Iterator[Solved]:
    """Yield the solution at each of ascending strengths."""
    before: list[Solved] = []
    for number, strength in enumerate(strengths, start=1):
        if step:
            step(f"Strength {number} of {len(strengths)}, C = {strength:g}{note}")
        start = _ahead(samples, before, strength)
        solved = _solve_folds(samples, strength, start, before[-1:])
        before = [*before[-1:], solved]
        yield solved


def _solve_folds(
    samples: Logistic,
    strength: float,
    start: np.ndarray,
    near: Sequence[Solved],
) -> Solved:
    """Return the optimum for each fold left out.

    The search starts at variables ``(num_folds, num_variables)``, with the curvature of a strength
    ``near`` that was solved, if there is one.
    """
    problems = Problems(np.full(len(samples.held_out_folds), strength), samples.held_out_folds)
    penalties = samples.penalties(problems)
    curvature: tuple[Pairs, ...] | None = None
    if near:
        curvature = samples.with_penalty(near[0].curvature, penalties - near[0].penalties)
    minimum = samples.solve(problems, start=start, stopping=_ON_THE_WAY, curvature=curvature)
    held_out, weights = samples.held_out(minimum.variables)
    point = PathPoint(
        strength=float(strength),
        log_loss=samples.loss.mean(held_out.logits, held_out.labels, weights=weights),
        top1=samples.loss.top1(held_out.logits, held_out.labels),
        objective=float(minimum.values.mean()),
        gradient_norm=float(minimum.gradient_norms.max()),
    )
    return Solved(point, penalties, minimum.variables, minimum.curvature, held_out)


def _ahead(samples: Logistic, before: Sequence[Solved], strength: float) -> np.ndarray:
    """Return where to start a strength, ``(num_folds, num_variables)``: further along the path."""
    if not before:
        return np.zeros((len(samples.held_out_folds), samples.num_variables))
    last = before[-1]
    if len(before) < 2:
        return last.variables
    gone = np.log(last.point.strength / before[0].point.strength)
    to_go = np.log(strength / last.point.strength)
    share = _AHEAD * min(to_go / gone, 2.0) if gone > 0 else 0.0
    start: np.ndarray = last.variables + share * (last.variables - before[0].variables)
    return start


def _some_classes(samples: Logistic, strengths: Sequence[float]) -> np.ndarray | None:
    """Return the classes, ascending, for which the path is solved; None for all of them."""
    if samples.loss is not SOFTMAX or len(strengths) <= _FEW_STRENGTHS:
        return None
    if not takes_seconds(samples, num_folds=len(samples.held_out_folds)):
        return None
    count = max(_SOME_CLASSES, samples.num_classes // _CLASSES_PER_CHOSEN)
    return np.sort(np.random.default_rng(0).permutation(samples.num_classes)[:count])


def _solve_around(
    samples: Logistic,
    strengths: Sequence[float],
    classes: np.ndarray,
    step: Step | None,
) -> tuple[list[PathPoint], Solved]:
    """Return the path around the best strength, and the solution there.

    All of the ascending strengths are solved for some classes first.
    """
    log.info(
        "With %s classes, all strengths are solved for %s of them, and those around the best for "
        "all.",
        *(f"{samples.num_classes:,}", f"{len(classes):,}"),
    )
    few = samples.of_classes(classes)
    note = f" for {len(classes):,} classes"
    losses, shapes = [], []
    for each in _solve_all(few, strengths, step, note=note):
        losses.append(each.point.log_loss)
        shapes.append(_Shape.of(few, each.variables))
    middle = int(np.argmin(losses))
    first = int(np.argmax(np.array(losses) < np.log(len(classes)) / 2))  # what is before is quick
    solved: dict[int, Solved] = {}
    ahead = [*([first] if first < middle - 1 else []), middle - 1, middle, middle + 1]
    while ahead:
        at = ahead.pop(0)
        if not 0 <= at < len(strengths) or at in solved:
            continue
        if step:
            step(f"Strength {at + 1} of {len(strengths)}, C = {strengths[at]:g}")
        if solved:
            nearest = min(solved, key=lambda other: abs(other - at))
            near = [solved[nearest]]
            start = shapes[at].grown_from(shapes[nearest], solved[nearest].variables)
        else:
            near, start = [], shapes[at].for_means(samples.class_means(samples.held_out_folds))
        solved[at] = _solve_folds(samples, strengths[at], start, near)
        best = min(solved, key=lambda other: solved[other].point.log_loss)
        ahead = ahead or [best - 1, best + 1]
    return [solved[at].point for at in sorted(solved)], solved[best]


@dataclass(frozen=True, eq=False)
class _Shape:
    """Dependence of the weights of classes on the means of their samples, on each fold.

    A class's weights are close to that mean, stretched along each direction of the basis, and its
    bias to a line in the product of both.

    Attributes:
        stretch: Factor along each direction, ``(num_folds, rank)``.
        line: Slope and offset of the bias, ``(num_folds, 2)``.
    """

    stretch: np.ndarray
    line: np.ndarray

    @classmethod
    def of(cls, samples: Logistic, variables: np.ndarray) -> _Shape:
        """Return that of solutions ``(num_folds, num_variables)``."""
        means = samples.class_means(samples.held_out_folds)
        shaped = variables.reshape(len(means), samples.num_classes, -1)
        squares = np.maximum((means**2).sum(axis=1), 1e-30)
        stretch = (shaped[:, :, :-1] * means).sum(axis=1) / squares
        product = np.einsum("pkd,pd->pk", means**2, stretch)
        bias, along = shaped[:, :, -1], product - product.mean(axis=1, keepdims=True)
        slope = (along * bias).sum(axis=1) / np.maximum((along**2).sum(axis=1), 1e-30)
        offset = bias.mean(axis=1) - slope * product.mean(axis=1)
        return cls(stretch, np.stack([slope, offset], axis=1))

    def for_means(self, means: np.ndarray) -> np.ndarray:
        """Return variables for classes with such means, ``(num_folds, num_classes, rank)``."""
        product = np.einsum("pkd,pd->pk", means**2, self.stretch)
        bias = self.line[:, :1] * product + self.line[:, 1:]
        weight = means * self.stretch[:, None]
        return np.concatenate([weight, bias[:, :, None]], axis=2).reshape(len(means), -1)

    def grown_from(self, other: _Shape, variables: np.ndarray) -> np.ndarray:
        """Return another strength's variables ``(num_folds, num_variables)``, stretched to this."""
        ratio = np.ones((len(self.stretch), self.stretch.shape[1] + 1))
        some = np.abs(other.stretch) > 1e-30
        np.divide(self.stretch, other.stretch, out=ratio[:, :-1], where=some)
        shaped = variables.reshape(len(ratio), -1, ratio.shape[1])
        grown: np.ndarray = (shaped * np.clip(ratio, 0, 100)[:, None]).reshape(variables.shape)
        return grown
