"""Proximal steps against SciPy, which minimizes what they are said to minimize."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from nnopt_jax.ops.proximal_operators import (
    block_rms,
    block_soft_threshold,
    hoyer_scale,
    shrink,
    soft_threshold,
)

X = np.array([0.9, -0.3, 0.05, -1.7, 0.4, 0.31], np.float32)


def _minimum(objective, start, **options):
    found = optimize.minimize(objective, start, method="SLSQP", tol=1e-12, **options)
    assert found.success
    return found.x


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.35, 2.0])
def test_soft_threshold_minimizes(threshold):
    # y = p - q with p, q >= 0 makes |y| smooth.
    def objective(z):
        p, q = z[:6], z[6:]
        return 0.5 * ((p - q - X) ** 2).sum() + threshold * (p + q).sum()

    z = _minimum(objective, np.zeros(12), bounds=[(0, None)] * 12)
    np.testing.assert_allclose(soft_threshold(X, threshold), z[:6] - z[6:], atol=1e-5)


@pytest.mark.parametrize("threshold", [0.1, 0.4, 0.7])
def test_block_soft_threshold_minimizes(threshold):
    x = X.reshape(2, 3)  # a group is a column

    def objective(y):
        norms = np.sqrt((y.reshape(2, 3) ** 2).sum(0))
        return 0.5 * ((y - X) ** 2).sum() + threshold * np.sqrt(2) * norms.sum()

    found = np.asarray(block_soft_threshold(x, threshold, (2, 1)))
    # The objective is convex and not smooth at 0, where quasi-Newton steps stop short.
    best = optimize.minimize(objective, 0.9 * X, method="Powell", options={"xtol": 1e-9}).x
    np.testing.assert_allclose(found.ravel(), best, atol=2e-4)
    gone = np.sqrt((x**2).mean(0)) <= threshold
    np.testing.assert_array_equal(found == 0, np.broadcast_to(gone, (2, 3)))


@pytest.mark.parametrize("threshold", [0.2, 0.35])
def test_hoyer_minimizes_on_the_sphere(threshold):
    found = np.asarray(soft_threshold(X, threshold) * hoyer_scale(X, threshold), np.float64)
    square = float((X.astype(np.float64) ** 2).sum())
    strength = threshold * square / (2 * np.abs(found).sum())

    def objective(y):
        measure = np.abs(y).sum() ** 2 / (y**2).sum()
        return 0.5 * ((y - X) ** 2).sum() + strength * measure

    assert (found**2).sum() == pytest.approx(square, rel=1e-6)
    rng = np.random.default_rng(0)
    radius = np.sqrt(square)
    for start in [X, found + 0.05, *rng.normal(size=(4, 6))]:
        sphere = {"type": "eq", "fun": lambda y: (y**2).sum() - square}
        best = optimize.minimize(objective, start * radius / np.linalg.norm(start),
                                 method="SLSQP", constraints=[sphere]).x  # fmt: skip
        best *= radius / np.linalg.norm(best)
        assert objective(found) <= objective(best) + 1e-6
    # Also of many small turns on the sphere none is better: it is a minimum.
    for turn in 0.02 * rng.normal(size=(300, 6)):
        other = found + turn
        assert objective(found) <= objective(other * radius / np.linalg.norm(other)) + 1e-9


def test_gradients():
    x, t = jnp.asarray(X), 0.35
    true = jax.grad(lambda x, t: soft_threshold(x, t).sum(), argnums=(0, 1))
    through = jax.grad(lambda x, t: shrink(x, t).sum(), argnums=(0, 1))
    beyond = np.abs(X) > t
    np.testing.assert_array_equal(true(x, t)[0], beyond.astype(np.float32))
    np.testing.assert_allclose(true(x, t)[1], -np.sign(X)[beyond].sum())
    np.testing.assert_array_equal(through(x, t)[0], np.ones(6))
    np.testing.assert_allclose(through(x, t)[1], -np.sign(X).sum())
    np.testing.assert_array_equal(shrink(x, t), soft_threshold(x, t))


def test_broken_and_extreme_numbers():
    x = np.array([np.nan, -np.inf, -0.0, 1e-30], np.float32)
    got = np.asarray(soft_threshold(x, 0.0))
    np.testing.assert_array_equal(got, x)
    assert not np.signbit(got[2])
    np.testing.assert_allclose(block_rms(np.full((2, 2), 3e38, np.float32), (2, 2)), [[3e38]])
    assert float(hoyer_scale(np.ones(3, np.float32), 1.0)) == 1
    assert not np.asarray(block_soft_threshold(np.zeros((2, 2)), 0.0, (2, 1))).any()
