"""L-BFGS for many smooth convex problems at once.

The problems have the same number of variables and are evaluated together, which turns many
matrix-vector products into few matrix-matrix products. A problem that has converged drops out.

Source: Nocedal and Wright, "Numerical Optimization" (2006), algorithms 7.4 and 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of variables ``(p, M)`` and which problems these are ``(p,)``: values ``(p,)``, gradients."""

_MEMORY = 12
_ARMIJO = 1e-4
_MAX_HALVINGS = 30


@dataclass(frozen=True)
class Minimum:
    """Where the search ended.

    Attributes:
        variables: ``(num_problems, M)``.
        values: Objective of each problem, ``(num_problems,)``.
        gradient_norms: Largest absolute component of each gradient, ``(num_problems,)``.
        num_evaluations: Calls of the objective.
    """

    variables: Tensor
    values: Tensor
    gradient_norms: Tensor
    num_evaluations: int


def minimise(
    objective: Objective,
    start: Tensor,
    *,
    inverse_diagonal: Tensor,
    tolerance: float,
    max_iterations: int = 1000,
) -> Minimum:
    """Return the minimum of each problem.

    Args:
        objective: Evaluates some of the problems.
        start: ``(num_problems, M)``, floating.
        inverse_diagonal: Rough inverse of each Hessian's diagonal, ``(num_problems, M)``; the
            better it is, the fewer iterations.
        tolerance: A problem is done when no component of its gradient is larger.
        max_iterations: Upper bound for each problem.
    """
    best = start.clone()
    every = torch.arange(len(start), device=start.device)
    values, gradients = objective(start, every)
    best_values, best_norms = values.clone(), gradients.abs().amax(1)
    evaluations = 1
    state = _State(every, start.clone(), values, gradients, inverse_diagonal, [])
    for _ in range(max_iterations):
        state = state.only(state.gradients.abs().amax(1) > tolerance)
        if not len(state.ids):
            break
        state, moved, calls = _step(objective, state)
        evaluations += calls
        best[state.ids] = state.variables
        best_values[state.ids] = state.values
        best_norms[state.ids] = state.gradients.abs().amax(1)
        state = state.only(moved)  # no descent left at this precision
    return Minimum(best, best_values, best_norms, evaluations)


@dataclass(frozen=True)
class _State:
    """The problems still being searched: one row each."""

    ids: Tensor
    variables: Tensor
    values: Tensor
    gradients: Tensor
    inverse_diagonal: Tensor
    memory: list[tuple[Tensor, Tensor, Tensor]]  # steps, gradient changes, 1 / their product

    def only(self, keep: Tensor) -> _State:
        if bool(keep.all()):
            return self
        return _State(
            self.ids[keep],
            self.variables[keep],
            self.values[keep],
            self.gradients[keep],
            self.inverse_diagonal[keep],
            [(s[keep], y[keep], r[keep]) for s, y, r in self.memory],
        )

    def direction(self) -> Tensor:
        """Return the quasi-Newton direction, ``(p, M)``, by the two-loop recursion."""
        q = self.gradients.clone()
        alphas = []
        for s, y, r in reversed(self.memory):
            alpha = r * (s * q).sum(1)
            q -= alpha[:, None] * y
            alphas.append(alpha)
        q *= self.inverse_diagonal
        if self.memory:
            s, y, r = self.memory[-1]
            curvature = (y * self.inverse_diagonal * y).sum(1) * r
            q *= torch.where(r > 0, 1 / curvature.clamp_min(1e-30), 1.0)[:, None]
        for (s, y, r), alpha in zip(self.memory, reversed(alphas), strict=True):
            beta = r * (y * q).sum(1)
            q += (alpha - beta)[:, None] * s
        return -q


def _step(objective: Objective, state: _State) -> tuple[_State, Tensor, int]:
    """Return the state after one iteration, which problems moved, and the evaluations it took."""
    direction = state.direction()
    slope = (state.gradients * direction).sum(1)
    uphill = slope >= 0  # rounding: fall back to the preconditioned gradient
    if bool(uphill.any()):
        plain = -state.inverse_diagonal * state.gradients
        direction[uphill] = plain[uphill]
        slope = (state.gradients * direction).sum(1)
    variables, values, gradients = (
        state.variables.clone(),
        state.values.clone(),
        state.gradients.clone(),
    )
    length = torch.ones_like(slope)
    searching = torch.arange(len(slope), device=slope.device)
    noise = 8 * torch.finfo(values.dtype).eps * state.values.abs()
    calls = 0
    for _ in range(_MAX_HALVINGS):
        trial = state.variables[searching] + length[searching, None] * direction[searching]
        new_values, new_gradients = objective(trial, state.ids[searching])
        calls += 1
        limit = state.values + _ARMIJO * length * slope + noise
        accepted = new_values <= limit[searching]
        done = searching[accepted]
        variables[done], values[done] = trial[accepted], new_values[accepted]
        gradients[done] = new_gradients[accepted]
        searching = searching[~accepted]
        if not len(searching):
            break
        length[searching] *= 0.5
    moved = torch.ones_like(slope, dtype=torch.bool)
    moved[searching] = False
    s, y = variables - state.variables, gradients - state.gradients
    product = (s * y).sum(1)
    usable = product > 1e-10 * (y * y).sum(1).sqrt() * (s * s).sum(1).sqrt()
    r = torch.where(usable, 1 / product.clamp_min(1e-300 if s.dtype == torch.float64 else 1e-37), 0)
    memory = [*state.memory, (s, y, r)][-_MEMORY:]
    return (
        _State(state.ids, variables, values, gradients, state.inverse_diagonal, memory),
        moved,
        calls,
    )
