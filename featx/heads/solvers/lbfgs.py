"""L-BFGS for many smooth convex problems at once.

The problems have the same number of variables and are evaluated together, which turns many
matrix-vector products into few matrix-matrix products. A problem that has converged drops out. What
a search has learnt of the curvature can start the next search of a similar problem.

Source: Nocedal and Wright, "Numerical Optimization" (2006), algorithms 7.4 and 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Objective = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Values ``(p,)`` and gradients at variables ``(p, M)`` of the problems with numbers ``(p,)``."""

Pairs = list[tuple[np.ndarray, np.ndarray]]
"""Steps and the changes of the gradient along them, ``(M,)`` each, oldest first."""

_ARMIJO = 1e-4
_MAX_HALVINGS = 20
_DECREMENT_FLOOR = 1e-10


@dataclass(frozen=True, eq=False)
class Minimum:
    """Result of a minimisation."""

    variables: np.ndarray  # (num_problems, M)
    values: np.ndarray  # (num_problems,)
    gradient_norms: np.ndarray  # largest absolute components, (num_problems,)
    num_evaluations: int
    curvature: tuple[Pairs, ...]  # estimated of each problem's Hessian


@dataclass(frozen=True)
class Stopping:
    """When a problem is done: whichever comes first."""

    gradient: float  # no component is larger
    decrement: float = 0.0  # the step ahead promises less than this share of the objective
    max_iterations: int = 1000
    noise: float = 2e-15  # share of the objective that is rounding


def minimise(
    objective: Objective,
    start: np.ndarray,
    *,
    inverse_diagonal: np.ndarray,
    stopping: Stopping,
    curvature: Sequence[Pairs] | None = None,
    memory: int = 15,
    progress: Callable[[int], None] | None = None,
) -> Minimum:
    """Return the minimum of each problem.

    Args:
        objective: Evaluates some of the problems.
        start: ``(num_problems, M)``, float64.
        inverse_diagonal: Rough inverse of each Hessian's diagonal, ``(num_problems, M)``.
        stopping: When a problem is done.
        curvature: Pairs of similar problems, one list for each problem.
        memory: Steps of each problem that are remembered.
        progress: Called after each iteration with the number of evaluations so far.
    """
    every = np.arange(len(start))
    values, gradients = objective(start, every)
    best = Minimum(start.copy(), values.copy(), _largest(gradients), 1, ())
    kept: list[Pairs] = [[] for _ in every]
    remembered = _stack(curvature, start.shape[1], memory) if curvature else []
    state = _State(every, start.copy(), values, gradients, inverse_diagonal, remembered)
    evaluations = 1
    for _ in range(stopping.max_iterations):
        going = _largest(state.gradients) > stopping.gradient
        direction = state.direction()
        if stopping.decrement:
            promised = -0.5 * _dots(state.gradients, direction)
            bound = stopping.decrement * np.abs(state.values) + _DECREMENT_FLOOR
            going &= (promised < 0) | (promised > bound)
        state.keep_curvature(~going, kept)
        state, direction = state.only(going), direction[going]
        if not len(state.ids):
            break
        state, moved, calls = _step(objective, state, direction, stopping.noise, memory)
        evaluations += calls
        if progress:
            progress(evaluations)
        best.variables[state.ids] = state.variables
        best.values[state.ids] = state.values
        best.gradient_norms[state.ids] = _largest(state.gradients)
        state.keep_curvature(~moved, kept)
        state = state.only(moved)  # no descent left at this precision
    state.keep_curvature(np.ones(len(state.ids), dtype=bool), kept)
    return Minimum(best.variables, best.values, best.gradient_norms, evaluations, tuple(kept))


@dataclass(frozen=True, eq=False)
class _State:
    """The problems still being searched: one row each."""

    ids: np.ndarray
    variables: np.ndarray
    values: np.ndarray
    gradients: np.ndarray
    inverse_diagonal: np.ndarray
    memory: list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # steps, changes, 1 / their product

    def only(self, keep: np.ndarray) -> _State:
        if keep.all():
            return self
        return _State(
            self.ids[keep],
            self.variables[keep],
            self.values[keep],
            self.gradients[keep],
            self.inverse_diagonal[keep],
            [(s[keep], y[keep], r[keep]) for s, y, r in self.memory],
        )

    def keep_curvature(self, which: np.ndarray, kept: list[Pairs]) -> None:
        """Keep the usable pairs of some problems, which are about to leave."""
        for row in np.flatnonzero(which):
            kept[self.ids[row]] = [(s[row], y[row]) for s, y, r in self.memory if r[row] > 0]

    def direction(self) -> np.ndarray:
        """Return the quasi-Newton direction, ``(p, M)``, by the two-loop recursion."""
        q = self.gradients.copy()
        alphas = []
        for s, y, r in reversed(self.memory):
            alpha = r * _dots(s, q)
            q -= alpha[:, None] * y
            alphas.append(alpha)
        q *= self.inverse_diagonal
        if self.memory:
            _, y, r = self.memory[-1]
            curvature = _dots(y * self.inverse_diagonal, y) * r
            q *= np.where(r > 0, 1 / np.maximum(curvature, 1e-30), 1.0)[:, None]
        for (s, y, r), alpha in zip(self.memory, reversed(alphas), strict=True):
            q += (alpha - r * _dots(y, q))[:, None] * s
        return -q


def _step(
    objective: Objective, state: _State, direction: np.ndarray, noise: float, memory: int
) -> tuple[_State, np.ndarray, int]:
    """Return the state after one iteration, which problems moved, and the evaluations it took."""
    slope = _dots(state.gradients, direction)
    uphill = slope >= 0  # rounding: fall back to the preconditioned gradient
    if uphill.any():
        direction[uphill] = -state.inverse_diagonal[uphill] * state.gradients[uphill]
        slope = _dots(state.gradients, direction)
    variables, values = state.variables.copy(), state.values.copy()
    gradients = state.gradients.copy()
    length = np.ones_like(slope)
    searching = np.arange(len(slope))
    limit = noise * np.abs(state.values)
    calls = 0
    for _ in range(_MAX_HALVINGS):
        trial = state.variables[searching] + length[searching, None] * direction[searching]
        new_values, new_gradients = objective(trial, state.ids[searching])
        calls += 1
        bound = (state.values + _ARMIJO * length * slope + limit)[searching]
        accepted = new_values <= bound
        done = searching[accepted]
        variables[done], values[done] = trial[accepted], new_values[accepted]
        gradients[done] = new_gradients[accepted]
        searching = searching[~accepted]
        if not len(searching):
            break
        length[searching] *= 0.5
    moved = np.ones(len(slope), dtype=bool)
    moved[searching] = False
    pair = _pair(variables - state.variables, gradients - state.gradients)
    remembered = [*state.memory, pair][-memory:]
    inverse = state.inverse_diagonal
    return _State(state.ids, variables, values, gradients, inverse, remembered), moved, calls


def _pair(s: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, changes and 1 / their product, which is 0 where a pair says nothing."""
    product = _dots(s, y)
    usable = product > 1e-10 * np.sqrt(_dots(y, y) * _dots(s, s))
    return s, y, np.where(usable, 1 / np.maximum(product, 1e-300), 0.0)


def _stack(
    curvature: Sequence[Pairs], size: int, memory: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the problems' pairs side by side, the newest last; missing ones are 0."""
    depth = min(memory, max(map(len, curvature)))
    stacked = []
    for age in range(depth, 0, -1):
        s, y = np.zeros((2, len(curvature), size))
        for row, pairs in enumerate(curvature):
            if age <= len(pairs):
                s[row], y[row] = pairs[-age]
        stacked.append(_pair(s, y))
    return stacked


def _dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("pm,pm->p", a, b))


def _largest(gradients: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(gradients).max(axis=1))
