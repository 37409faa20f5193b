"""The linear head: L2-regularised logistic regression, solved to the optimum.

The strength with the lowest held-out log loss is chosen along a path from the strongest
regularisation on, then solved on all samples, tightly. Each search on the path is extrapolated from
those before it and inherits their estimate of the curvature; folds are solved side by side.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from featx.heads.head import Fitted
from featx.heads.samples.data import Step, TrainingData, no_step
from featx.heads.samples.folds import NUM_FOLDS, Division, HeldOut, units_of
from featx.heads.solvers.eigenbasis import build_eigenbasis
from featx.heads.solvers.lbfgs import Minimum, Pairs, Stopping
from featx.heads.solvers.logistic import Logistic, Problems
from featx.heads.tasks.losses import SOFTMAX, LogisticLoss

log = logging.getLogger(__name__)

STRENGTHS: tuple[float, ...] = tuple(float(f"{c:.3g}") for c in np.logspace(-6.5, 1, 16))
FIXED_STRENGTH = STRENGTHS[10]
"""Used where nothing can be held out: has the lowest log loss of one-shot heads, on average."""
_TO_THE_END = Stopping(gradient=1e-7)
_TO_SINGLE_PRECISION = Stopping(gradient=1e-6, decrement=2e-7)
_OF_MANY_CLASSES = Stopping(gradient=1e-6, decrement=5e-6)
_SUSPICIOUS_GRADIENT = 1e-3
_AHEAD = 0.7
"""Share of the last change along the path by which the next start is moved on."""
_ON_THE_WAY = Stopping(gradient=1e-7, decrement=5e-5, max_iterations=200)
_MANY_MULTIPLICATIONS = 2**34
"""Multiplications of a pass above which strengths are narrowed down on some classes."""
_SOME_CLASSES, _CLASSES_PER_CHOSEN = 128, 6
_FEW_STRENGTHS = 4


@dataclass(frozen=True)
class PathPoint:
    """One strength of the path, solved on the samples that were not held out."""

    strength: float
    log_loss: float  # of the held-out samples, nats
    top1: float | None  # of the held-out samples; None for tags
    objective: float  # mean over folds
    gradient_norm: float  # largest component, of all folds


@dataclass(frozen=True, eq=False)
class Solved:
    """One strength on every fold."""

    point: PathPoint
    penalties: np.ndarray  # (num_folds,)
    variables: np.ndarray  # (num_folds, num_variables)
    curvature: tuple[Pairs, ...]  # of each fold
    held_out: HeldOut


def fit_linear(
    data: TrainingData,
    strengths: Sequence[float] = STRENGTHS,
    *,
    hold_out: bool = False,
    loss: LogisticLoss = SOFTMAX,
    seed: int = 0,
    step: Step = no_step,
) -> Fitted:
    """Return the regularised optimum on all samples, at the strength with the least held-out loss.

    Where nothing can be held out, the strength nearest to ``FIXED_STRENGTH`` is taken. Classes
    without samples get logits that lose.

    If features are read in blocks, the strength is chosen on the subsample. The last fit starts
    where that left off, and solves the same strength without the held-out samples in the same
    passes, so that the temperature is fitted on outputs for samples that were not trained on.

    Args:
        data: Its targets are class indices, or with ``SIGMOID`` tags.
        strengths: Values of ``C`` to choose from.
        hold_out: Hold samples out for a single strength too.
        loss: Minimised.
        seed: Decides the folds.
        step: Called with the step under way.
    """
    basis, basis_of_some = build_eigenbasis(data)
    rows, some = data.subsample()
    division, best = None, None
    path: tuple[PathPoint, ...] = ()
    if len(strengths) > 1 or hold_out:
        division = _divide(data, some, loss, seed=seed)
    if division:
        samples = Logistic(basis_of_some, some, division=division, loss=loss)
        best, path = follow_path(samples, strengths, step=step)
    strength = best.point.strength if best else fixed_strength(strengths)
    held_out = best.held_out if best else None
    if data.first_pass:
        left_out = np.full(len(data), -2)
        if division:
            units = units_of(data.groups, len(data))  # the rest of their groups is left out, too
            left_out[np.isin(units, units[rows[division.held_out]])] = 0
        every = Logistic(basis, data, division=Division(left_out, np.array([0])), loss=loss)
        optimum = _refit(every, strength, best, left_out=[-1, 0] if best else [-1], step=step)
        if division:
            out = division.held_out
            logits = every.logits(optimum.variables[1], basis_of_some.array[out])
            held_out = HeldOut(logits, some.targets[out])
    else:
        every = Logistic(basis, data, loss=loss)
        if best and loss is SOFTMAX and takes_seconds(every):
            best = with_all_samples(best, samples, every)
        optimum = _refit(every, strength, best, step=step)
    choice = {
        "head": "linear",
        "solver": "lbfgs",
        "strength": strength,
        "path": [asdict(point) for point in path],
        "num_folds": len(division.held_out_folds) if division else 0,
        "objective": float(optimum.values[0]),
        "gradient_norm": float(optimum.gradient_norms[0]),
        "num_evaluations": optimum.num_evaluations,
        "seed": seed,
    }
    return Fitted((every.layer(optimum.variables[0]),), choice, held_out)


def _divide(
    data: TrainingData, some: TrainingData, loss: LogisticLoss, *, seed: int
) -> Division | None:
    """Return who of the subsample is held out when; None for nobody."""
    if not data.first_pass:
        return data.divide(loss.divide, seed=seed)
    # one fold, so that the last fit solves only one head more
    held_out = loss.hold_out(some.targets, NUM_FOLDS, groups=some.groups, seed=seed)
    return Division(np.where(held_out, 0, 1), np.array([0])) if held_out.any() else None


def fixed_strength(strengths: Sequence[float]) -> float:
    """Return the strength to take where nothing can be held out to choose by.

    >>> fixed_strength([0.001]), fixed_strength(STRENGTHS)
    (0.001, 0.0316)
    """
    return float(min(strengths, key=lambda c: abs(np.log(c / FIXED_STRENGTH))))


def _refit(
    samples: Logistic,
    strength: float,
    best: Solved | None,
    *,
    left_out: Sequence[int] = (-1,),
    step: Step = no_step,
) -> Minimum:
    """Return the optimum at one strength for each fold left out, from the path's best on."""
    count = len(left_out)
    problems = Problems(np.full(count, strength), np.array(left_out))
    curvature: tuple[Pairs, ...] | None = None
    start = np.zeros((count, samples.num_variables))
    if best:
        start = np.repeat(best.variables.mean(axis=0, keepdims=True), count, axis=0)
        change = samples.penalties(problems) - best.penalties[:1]
        curvature = samples.with_penalty([best.curvature[0]] * count, change)
    stopping = _TO_THE_END if samples.is_double else _TO_SINGLE_PRECISION
    if takes_seconds(samples):
        stopping = _OF_MANY_CLASSES

    def progress(num_passes: int) -> None:
        step(f"All samples at C = {strength:g}, pass {num_passes}")

    optimum = samples.solve(
        problems, start=start, curvature=curvature, stopping=stopping, progress=progress
    )
    if optimum.gradient_norms[0] > _SUSPICIOUS_GRADIENT:
        log.warning("The linear head stopped early: gradient norm %.1e.", optimum.gradient_norms[0])
    return optimum


def follow_path(
    samples: Logistic, strengths: Sequence[float], *, step: Step = no_step
) -> tuple[Solved, tuple[PathPoint, ...]]:
    """Return the best strength and the path, weakest ``C`` first."""
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
    """Return a solution adapted to all samples by the change of the means of classes.

    In a class of three samples, one is a third of what its weights depend on. ``some`` hold
    samples out, ``everything`` none.
    """
    shape = _Shape.of(some, best.variables)
    change = everything.class_means(np.array([-1])) - some.class_means(some.held_out_folds)
    shaped = best.variables.reshape(*change.shape[:2], -1).copy()
    shaped[:, :, :-1] += change * shape.stretch[:, None]
    return replace(best, variables=shaped.reshape(best.variables.shape))


def _solve_each(
    samples: Logistic, strengths: Sequence[float], step: Step
) -> tuple[list[PathPoint], Solved]:
    """Return the whole path, and the solution at the best strength."""
    solutions = _solve_all(samples, strengths, step)
    best = next(solutions)
    path = [best.point]
    for solved in solutions:
        path.append(solved.point)
        if solved.point.log_loss < best.point.log_loss:
            best = solved
    return path, best


def _solve_all(
    samples: Logistic, strengths: Sequence[float], step: Step, *, note: str = ""
) -> Iterator[Solved]:
    """Yield the solution at each of ascending strengths."""
    before: list[Solved] = []
    for number, strength in enumerate(strengths, start=1):
        step(f"Strength {number} of {len(strengths)}, C = {strength:g}{note}")
        start = _ahead(samples, before, strength)
        solved = _solve_folds(samples, strength, start, before[-1] if before else None)
        before = [*before[-1:], solved]
        yield solved


def _solve_folds(
    samples: Logistic, strength: float, start: np.ndarray, near: Solved | None
) -> Solved:
    """Return the optimum for each fold left out, with the curvature of a strength ``near``."""
    problems = Problems(np.full(len(samples.held_out_folds), strength), samples.held_out_folds)
    penalties = samples.penalties(problems)
    curvature: tuple[Pairs, ...] | None = None
    if near:
        curvature = samples.with_penalty(near.curvature, penalties - near.penalties)
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
    samples: Logistic, strengths: Sequence[float], classes: np.ndarray, step: Step
) -> tuple[list[PathPoint], Solved]:
    """Return the path around the best strength, and the solution there.

    With thousands of classes a pass takes seconds. All strengths are solved for some of the classes
    first, and for all of them only around the strength that was best there.
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
        step(f"Strength {at + 1} of {len(strengths)}, C = {strengths[at]:g}")
        if solved:
            nearest = min(solved, key=lambda other: abs(other - at))
            near: Solved | None = solved[nearest]
            start = shapes[at].grown_from(shapes[nearest], solved[nearest].variables)
        else:
            near, start = None, shapes[at].for_means(samples.class_means(samples.held_out_folds))
        solved[at] = _solve_folds(samples, strengths[at], start, near)
        best = min(solved, key=lambda other: solved[other].point.log_loss)
        ahead = ahead or [best - 1, best + 1]
    return [solved[at].point for at in sorted(solved)], solved[best]


@dataclass(frozen=True, eq=False)
class _Shape:
    """Dependence of the weights of classes on the means of their samples, on each fold.

    A class's weights are close to that mean, stretched along each direction of the basis, and its
    bias to a line in the product of both.
    """

    stretch: np.ndarray  # along each direction, (num_folds, rank)
    line: np.ndarray  # slope and offset of the bias, (num_folds, 2)

    @classmethod
    def of(cls, samples: Logistic, variables: np.ndarray) -> _Shape:
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
