"""L-BFGS: the minimum of each problem, as if it were alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from featx.heads.lbfgs import Minimum, Objective, minimise


def quadratics(hessians: Tensor, minima: Tensor) -> Objective:
    """``½ (x - m)ᵀ H (x - m)`` for each problem."""

    def objective(variables: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        difference = variables - minima[which]
        gradient = torch.einsum("pij,pj->pi", hessians[which], difference)
        return 0.5 * (difference * gradient).sum(1), gradient

    return objective


def random_quadratics(
    num_problems: int,
    size: int,
    *,
    condition: float,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Hessians with eigenvalues from 1 / condition to 1, and minima."""
    random = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(
        torch.randn(num_problems, size, size, generator=random, dtype=torch.float64)
    )
    eigenvalues = torch.logspace(0, -1, size, base=condition, dtype=torch.float64)
    hessians = rotation @ torch.diag(eigenvalues) @ rotation.mT
    minima = torch.randn(num_problems, size, generator=random, dtype=torch.float64)
    return hessians.to(dtype), minima.to(dtype)


def diagonal_inverse(hessians: Tensor) -> Tensor:
    return 1 / hessians.diagonal(dim1=1, dim2=2)


def solve(hessians: Tensor, minima: Tensor, *, tolerance: float = 1e-10) -> Minimum:
    return minimise(
        quadratics(hessians, minima),
        torch.zeros_like(minima),
        inverse_diagonal=diagonal_inverse(hessians),
        tolerance=tolerance,
    )


@settings(max_examples=30, deadline=None)
@given(
    num_problems=st.integers(1, 6),
    size=st.integers(1, 15),
    condition=st.sampled_from([1.0, 10.0, 1e3]),
    seed=st.integers(0, 2**31),
)
def test_quadratics_equal_the_linear_solve(
    num_problems: int, size: int, condition: float, seed: int
) -> None:
    hessians, minima = random_quadratics(num_problems, size, condition=condition, seed=seed)
    right = torch.einsum("pij,pj->pi", hessians, minima)  # ½ xᵀHx - bᵀx
    expected = torch.linalg.solve(hessians, right)

    def objective(variables: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        product = torch.einsum("pij,pj->pi", hessians[which], variables)
        value = (variables * (0.5 * product - right[which])).sum(1)
        return value, product - right[which]

    found = minimise(
        objective,
        torch.zeros_like(minima),
        inverse_diagonal=diagonal_inverse(hessians),
        tolerance=1e-8,
    )
    assert (found.gradient_norms <= 1e-7).all()
    assert torch.allclose(found.variables, expected, atol=1e-6 * condition)


def test_badly_conditioned() -> None:
    """Rotated, so that the diagonal says nothing: the value still falls by many orders."""
    hessians, minima = random_quadratics(3, 30, condition=1e6)
    start = quadratics(hessians, minima)(torch.zeros_like(minima), torch.arange(3))[0]
    found = minimise(
        quadratics(hessians, minima),
        torch.zeros_like(minima),
        inverse_diagonal=diagonal_inverse(hessians),
        tolerance=1e-6,
        max_iterations=500,
    )
    assert (found.values <= 1e-5 * start).all()


def test_bad_scales_are_met_by_the_diagonal() -> None:
    """Where the diagonal is the Hessian, one step is enough whatever the scales."""
    scales = torch.logspace(-6, 6, 13, dtype=torch.float64)
    found = solve(torch.diag(scales)[None], torch.ones(1, 13, dtype=torch.float64))
    assert found.num_evaluations <= 3
    assert torch.allclose(found.variables, torch.ones(1, 13, dtype=torch.float64))


def test_a_poor_diagonal_only_costs_iterations() -> None:
    hessians, minima = random_quadratics(2, 8, condition=100)
    for factor in (1e-3, 1e3):
        found = minimise(
            quadratics(hessians, minima),
            torch.zeros_like(minima),
            inverse_diagonal=torch.full_like(minima, factor),
            tolerance=1e-9,
        )
        assert torch.allclose(found.variables, minima, atol=1e-6)


def test_problems_do_not_disturb_each_other() -> None:
    """Easy ones finish at once, hard ones much later: each ends where it would have alone."""
    parts = [
        random_quadratics(1, 12, condition=condition, seed=seed)
        for seed, condition in enumerate([1.0, 1e3, 3.0, 1e4, 1.0, 100.0])
    ]
    hessians, minima = (torch.cat(part) for part in zip(*parts, strict=True))
    minima[4] = 0  # done before it starts
    together = solve(hessians, minima, tolerance=1e-9)
    for row in range(len(minima)):
        alone = solve(hessians[row : row + 1], minima[row : row + 1], tolerance=1e-9)
        assert torch.allclose(together.variables[row], alone.variables[0], atol=1e-5), row
        assert together.gradient_norms[row] <= 1e-9, row
    assert torch.equal(together.variables[4], torch.zeros(12, dtype=torch.float64))


def test_finished_problems_are_not_evaluated_again() -> None:
    hessians, minima = random_quadratics(3, 20, condition=100)
    minima[1] = 0
    asked: list[list[int]] = []

    def objective(variables: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(which.tolist())
        return quadratics(hessians, minima)(variables, which)

    found = minimise(
        objective,
        torch.zeros_like(minima),
        inverse_diagonal=diagonal_inverse(hessians),
        tolerance=1e-8,
    )
    assert asked[0] == [0, 1, 2]
    assert all(1 not in which for which in asked[1:])
    assert found.num_evaluations == len(asked)


def test_what_is_reported_is_true() -> None:
    hessians, minima = random_quadratics(4, 10, condition=1e3)
    found = solve(hessians, minima, tolerance=1e-6)
    values, gradients = quadratics(hessians, minima)(found.variables, torch.arange(4))
    assert torch.allclose(found.values, values, rtol=1e-6, atol=1e-15)
    assert torch.allclose(found.gradient_norms, gradients.abs().amax(1), rtol=1e-6, atol=1e-12)
    assert (found.gradient_norms <= 1e-6).all()


def test_a_start_at_the_minimum_stays_and_costs_one_evaluation() -> None:
    hessians, minima = random_quadratics(2, 5, condition=10)
    start = minima.clone()
    found = minimise(
        quadratics(hessians, minima),
        start,
        inverse_diagonal=diagonal_inverse(hessians),
        tolerance=1e-9,
    )
    assert found.num_evaluations == 1
    assert torch.equal(found.variables, minima)
    assert torch.equal(start, minima)


def test_the_start_is_not_written_to() -> None:
    hessians, minima = random_quadratics(2, 5, condition=10)
    start = torch.ones_like(minima)
    minimise(
        quadratics(hessians, minima),
        start,
        inverse_diagonal=diagonal_inverse(hessians),
        tolerance=1e-9,
    )
    assert torch.equal(start, torch.ones_like(minima))


def test_iterations_are_bounded_and_never_make_it_worse() -> None:
    hessians, minima = random_quadratics(2, 30, condition=1e6)
    objective, start = quadratics(hessians, minima), torch.zeros_like(minima)
    last = objective(start, torch.arange(2))[0]
    for bound in (0, 1, 3, 10):
        found = minimise(
            objective,
            start,
            inverse_diagonal=diagonal_inverse(hessians),
            tolerance=1e-12,
            max_iterations=bound,
        )
        assert (found.values <= last + 1e-12).all()
        last = found.values


@pytest.mark.parametrize("condition", [1.0, 100.0])
def test_float32_ends_where_precision_does(condition: float) -> None:
    """The tolerance is out of reach; the search must notice and stop near the minimum."""
    hessians, minima = random_quadratics(3, 20, condition=condition, dtype=torch.float32)
    offset = 100.0  # a value whose rounding hides the last descent

    def objective(variables: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        values, gradients = quadratics(hessians, minima)(variables, which)
        return values + offset, gradients

    found = minimise(
        objective,
        torch.zeros_like(minima),
        inverse_diagonal=diagonal_inverse(hessians),
        tolerance=0,
        max_iterations=200,
    )
    assert found.variables.dtype == torch.float32
    assert torch.isfinite(found.variables).all()
    assert (found.values - offset < 1e-3).all()
    assert found.num_evaluations < 20_000


def log_sum_exp(matrices: Tensor, offsets: Tensor) -> Objective:
    """``log Σ exp(a·x + b) + ½|x|²/100``: convex, far from quadratic."""

    def objective(variables: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.einsum("pij,pj->pi", matrices[which], variables) + offsets[which]
        values = scores.logsumexp(1) + 0.005 * (variables**2).sum(1)
        weights = scores.softmax(1)
        return values, torch.einsum("pij,pi->pj", matrices[which], weights) + 0.01 * variables

    return objective


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_convex_but_not_quadratic(scale: float) -> None:
    random = torch.Generator().manual_seed(0)
    matrices = scale * torch.randn(4, 30, 6, generator=random, dtype=torch.float64)
    offsets = torch.randn(4, 30, generator=random, dtype=torch.float64)
    objective = log_sum_exp(matrices, offsets)
    start = 3 * torch.randn(4, 6, generator=random, dtype=torch.float64)
    found = minimise(objective, start, inverse_diagonal=torch.ones_like(start), tolerance=1e-8)
    assert (found.gradient_norms <= 1e-8).all()
    for _ in range(20):  # convex: a zero gradient is the minimum, but look around anyway
        nearby = found.variables + 1e-2 * torch.randn(4, 6, generator=random, dtype=torch.float64)
        assert (objective(nearby, torch.arange(4))[0] >= found.values).all()
    again = minimise(objective, -start, inverse_diagonal=torch.ones_like(start), tolerance=1e-8)
    assert torch.allclose(found.variables, again.variables, atol=1e-5)


def test_deterministic() -> None:
    hessians, minima = random_quadratics(4, 20, condition=100)
    first, second = solve(hessians, minima), solve(hessians, minima)
    assert torch.equal(first.variables, second.variables)
    assert first.num_evaluations == second.num_evaluations
