"""L-BFGS: the minimum of each problem, as if it were alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.heads.solvers.lbfgs import Minimum, Objective, Stopping, minimise


def quadratics(hessians: np.ndarray, minima: np.ndarray) -> Objective:
    """``½ (x - m)ᵀ H (x - m)`` for each problem."""

    def objective(variables: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        difference = variables - minima[which]
        gradient = np.einsum("pij,pj->pi", hessians[which], difference)
        return 0.5 * (difference * gradient).sum(1), gradient

    return objective


def random_quadratics(
    num_problems: int,
    size: int,
    *,
    condition: float,
    seed: int = 0,
    dtype: type = np.float64,
) -> tuple[np.ndarray, np.ndarray]:
    """Hessians with eigenvalues from 1 / condition to 1, and minima."""
    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(random.normal(size=(num_problems, size, size)))
    eigenvalues = condition ** -np.linspace(0, 1, size)
    hessians = (rotation * eigenvalues) @ rotation.mT
    return hessians.astype(dtype), random.normal(size=(num_problems, size)).astype(dtype)


def diagonal_inverse(hessians: np.ndarray) -> np.ndarray:
    return 1 / np.diagonal(hessians, axis1=1, axis2=2)


def solve(hessians: np.ndarray, minima: np.ndarray, *, tolerance: float = 1e-10) -> Minimum:
    return minimise(
        quadratics(hessians, minima),
        np.zeros_like(minima),
        inverse_diagonal=diagonal_inverse(hessians),
        stopping=Stopping(tolerance),
    )


@settings(max_examples=30, deadline=None)
@given(
    num_problems=st.integers(1, 6),
    size=st.integers(1, 15),
    condition=st.sampled_from([1.0, 10.0, 1e3]),
    seed=st.integers(0, 2**31),
)
def test_quadratics_equal_the_linear_solve(num_problems, size, condition, seed):
    hessians, minima = random_quadratics(num_problems, size, condition=condition, seed=seed)
    right = np.einsum("pij,pj->pi", hessians, minima)  # ½ xᵀHx - bᵀx
    expected = np.linalg.solve(hessians, right[:, :, None])[:, :, 0]

    def objective(variables: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        product = np.einsum("pij,pj->pi", hessians[which], variables)
        value = (variables * (0.5 * product - right[which])).sum(1)
        return value, product - right[which]

    found = minimise(
        objective,
        np.zeros_like(minima),
        inverse_diagonal=diagonal_inverse(hessians),
        stopping=Stopping(1e-8),
    )
    assert (found.gradient_norms <= 1e-7).all()
    assert np.allclose(found.variables, expected, atol=1e-6 * condition)


def test_badly_conditioned():
    """Rotated, so that the diagonal says nothing: the value still falls by many orders."""
    hessians, minima = random_quadratics(3, 30, condition=1e6)
    start = quadratics(hessians, minima)(np.zeros_like(minima), np.arange(3))[0]
    found = minimise(
        quadratics(hessians, minima),
        np.zeros_like(minima),
        inverse_diagonal=diagonal_inverse(hessians),
        stopping=Stopping(1e-6, max_iterations=500),
    )
    assert (found.values <= 1e-5 * start).all()


def test_bad_scales_are_met_by_the_diagonal():
    """Where the diagonal is the Hessian, one step is enough whatever the scales."""
    scales = np.logspace(-6, 6, 13)
    found = solve(np.diag(scales)[None], np.ones((1, 13)))
    assert found.num_evaluations <= 3
    assert np.allclose(found.variables, np.ones((1, 13)))


def test_a_poor_diagonal_only_costs_iterations():
    hessians, minima = random_quadratics(2, 8, condition=100)
    for factor in (1e-3, 1e3):
        found = minimise(
            quadratics(hessians, minima),
            np.zeros_like(minima),
            inverse_diagonal=np.full_like(minima, factor),
            stopping=Stopping(1e-9),
        )
        assert np.allclose(found.variables, minima, atol=1e-6)


def test_problems_do_not_disturb_each_other():
    """Easy ones finish at once, hard ones much later: each ends where it would have alone."""
    parts = [
        random_quadratics(1, 12, condition=condition, seed=seed)
        for seed, condition in enumerate([1.0, 1e3, 3.0, 1e4, 1.0, 100.0])
    ]
    hessians, minima = (np.concatenate(part) for part in zip(*parts, strict=True))
    minima[4] = 0  # done before it starts
    together = solve(hessians, minima, tolerance=1e-9)
    for row in range(len(minima)):
        alone = solve(hessians[row : row + 1], minima[row : row + 1], tolerance=1e-9)
        assert np.allclose(together.variables[row], alone.variables[0], atol=1e-5), row
        assert together.gradient_norms[row] <= 1e-9, row
    assert np.array_equal(together.variables[4], np.zeros(12))


def test_finished_problems_are_not_evaluated_again():
    hessians, minima = random_quadratics(3, 20, condition=100)
    minima[1] = 0
    asked: list[list[int]] = []

    def objective(variables: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.append(which.tolist())
        return quadratics(hessians, minima)(variables, which)

    found = minimise(
        objective,
        np.zeros_like(minima),
        inverse_diagonal=diagonal_inverse(hessians),
        stopping=Stopping(1e-8),
    )
    assert asked[0] == [0, 1, 2]
    assert all(1 not in which for which in asked[1:])
    assert found.num_evaluations == len(asked)


def test_what_is_reported_is_true():
    hessians, minima = random_quadratics(4, 10, condition=1e3)
    found = solve(hessians, minima, tolerance=1e-6)
    values, gradients = quadratics(hessians, minima)(found.variables, np.arange(4))
    assert np.allclose(found.values, values, rtol=1e-6, atol=1e-15)
    assert np.allclose(found.gradient_norms, np.abs(gradients).max(axis=1), rtol=1e-6, atol=1e-12)
    assert (found.gradient_norms <= 1e-6).all()


def test_a_start_at_the_minimum_stays_and_costs_one_evaluation():
    hessians, minima = random_quadratics(2, 5, condition=10)
    start = minima.copy()
    found = minimise(
        quadratics(hessians, minima),
        start,
        inverse_diagonal=diagonal_inverse(hessians),
        stopping=Stopping(1e-9),
    )
    assert found.num_evaluations == 1
    assert np.array_equal(found.variables, minima)
    assert np.array_equal(start, minima)


def test_the_start_is_not_written_to():
    hessians, minima = random_quadratics(2, 5, condition=10)
    start = np.ones_like(minima)
    minimise(
        quadratics(hessians, minima),
        start,
        inverse_diagonal=diagonal_inverse(hessians),
        stopping=Stopping(1e-9),
    )
    assert np.array_equal(start, np.ones_like(minima))


def test_iterations_are_bounded_and_never_make_it_worse():
    hessians, minima = random_quadratics(2, 30, condition=1e6)
    objective, start = quadratics(hessians, minima), np.zeros_like(minima)
    last = objective(start, np.arange(2))[0]
    for bound in (0, 1, 3, 10):
        found = minimise(
            objective,
            start,
            inverse_diagonal=diagonal_inverse(hessians),
            stopping=Stopping(1e-12, max_iterations=bound),
        )
        assert (found.values <= last + 1e-12).all()
        last = found.values


@pytest.mark.parametrize("condition", [1.0, 100.0])
def test_float32_ends_where_precision_does(condition):
    """The tolerance is out of reach; the search must notice and stop near the minimum."""
    hessians, minima = random_quadratics(3, 20, condition=condition, dtype=np.float32)
    offset = 100.0  # a value whose rounding hides the last descent

    def objective(variables: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, gradients = quadratics(hessians, minima)(variables.astype(np.float32), which)
        return (values + np.float32(offset)).astype(np.float64), gradients.astype(np.float64)

    found = minimise(
        objective,
        np.zeros(minima.shape),
        inverse_diagonal=diagonal_inverse(hessians),
        stopping=Stopping(0, max_iterations=200, noise=1e-6),
    )
    assert found.variables.dtype == np.float64
    assert np.isfinite(found.variables).all()
    assert (found.values - offset < 1e-3).all()
    assert found.num_evaluations < 20_000


def log_sum_exp(matrices: np.ndarray, offsets: np.ndarray) -> Objective:
    """``log Σ exp(a·x + b) + ½|x|²/100``: convex, far from quadratic."""

    def objective(variables: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = np.einsum("pij,pj->pi", matrices[which], variables) + offsets[which]
        largest = scores.max(axis=1, keepdims=True)
        weights = np.exp(scores - largest)
        values = np.log(weights.sum(1)) + largest[:, 0] + 0.005 * (variables**2).sum(1)
        weights /= weights.sum(1, keepdims=True)
        return values, np.einsum("pij,pi->pj", matrices[which], weights) + 0.01 * variables

    return objective


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_convex_but_not_quadratic(scale):
    random = np.random.default_rng(0)
    matrices = scale * random.normal(size=(4, 30, 6))
    offsets = random.normal(size=(4, 30))
    objective = log_sum_exp(matrices, offsets)
    start = 3 * random.normal(size=(4, 6))
    found = minimise(
        objective, start, inverse_diagonal=np.ones_like(start), stopping=Stopping(1e-8)
    )
    assert (found.gradient_norms <= 1e-8).all()
    for _ in range(20):  # convex: a zero gradient is the minimum, but look around anyway
        nearby = found.variables + 1e-2 * random.normal(size=(4, 6))
        assert (objective(nearby, np.arange(4))[0] >= found.values).all()
    again = minimise(
        objective, -start, inverse_diagonal=np.ones_like(start), stopping=Stopping(1e-8)
    )
    assert np.allclose(found.variables, again.variables, atol=1e-5)


def test_deterministic():
    hessians, minima = random_quadratics(4, 20, condition=100)
    first, second = solve(hessians, minima), solve(hessians, minima)
    assert np.array_equal(first.variables, second.variables)
    assert first.num_evaluations == second.num_evaluations


# --- handing curvature on -----------------------------------------------------------------------


def test_what_was_learnt_makes_a_similar_problem_cheaper():
    hessians, minima = random_quadratics(3, 12, condition=100)
    inverse = diagonal_inverse(hessians)
    first = solve(hessians, minima, tolerance=1e-8)
    nearby = minima + 1
    options = {"inverse_diagonal": inverse, "stopping": Stopping(1e-8)}
    cold = minimise(quadratics(hessians, nearby), np.zeros_like(minima), **options)
    warm = minimise(
        quadratics(hessians, nearby), np.zeros_like(minima), **options, curvature=first.curvature
    )
    assert np.allclose(warm.variables, nearby, atol=1e-4)
    assert warm.num_evaluations < cold.num_evaluations


def test_curvature_is_that_of_its_problem_however_early_it_left():
    """A pair's change of gradient is its Hessian times its step."""
    hessians, minima = random_quadratics(3, 12, condition=100)
    minima[1] = 0
    found = solve(hessians, minima, tolerance=1e-6)
    assert found.curvature[1] == []
    for row in (0, 2):
        assert 1 < len(found.curvature[row]) <= 15
        for s, y in found.curvature[row]:
            assert np.allclose(hessians[row] @ s, y, atol=1e-10)


def test_wrong_curvature_only_costs_iterations():
    hessians, minima = random_quadratics(2, 8, condition=10)
    lies = [[(np.ones(8), 1e3 * np.ones(8)), (np.ones(8), -np.ones(8))], []]
    found = minimise(
        quadratics(hessians, minima),
        np.zeros_like(minima),
        inverse_diagonal=diagonal_inverse(hessians),
        stopping=Stopping(1e-9),
        curvature=lies,
    )
    assert np.allclose(found.variables, minima, atol=1e-6)


def test_a_decrement_ends_the_search_that_close_to_the_minimum():
    hessians, minima = random_quadratics(4, 30, condition=100)
    objective = quadratics(hessians, minima)

    def raised(variables: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, gradients = objective(variables, which)
        return values + 1, gradients

    tight = solve(hessians, minima)
    for share in (1e-2, 1e-4):
        found = minimise(
            raised,
            np.zeros_like(minima),
            inverse_diagonal=diagonal_inverse(hessians),
            stopping=Stopping(gradient=0, decrement=share),
        )
        assert (found.values <= 1 + 20 * share).all()
        assert found.num_evaluations < tight.num_evaluations
