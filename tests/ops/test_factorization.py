"""Singular vectors and factors against SciPy, and ranks against their definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from nnopt_jax.errors import ValueRangeError
from nnopt_jax.ops.factorization import factorize, rank_for_energy, svd

KEY = jax.random.key(0)


def decaying(rows: int = 60, columns: int = 40, rate: float = 0.7, seed: int = 0) -> np.ndarray:
    """A matrix whose singular values are powers of `rate`."""
    rng = np.random.default_rng(seed)
    u, v = (scipy.linalg.qr(rng.normal(size=(n, columns)), mode="economic")[0]
            for n in (rows, columns))  # fmt: skip
    return (u * rate ** np.arange(columns) @ v.T).astype(np.float32)


@pytest.mark.isa
@pytest.mark.parametrize("method", ["svd", "randomized"])
def test_it_is_scipys_up_to_signs(method):
    x = decaying()
    u, s, v = (np.asarray(part) for part in svd(x, 6, method=method, key=KEY))
    wanted_u, wanted_s, wanted_v = scipy.linalg.svd(x.astype(np.float64))
    np.testing.assert_allclose(s, wanted_s[:6], rtol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(u * wanted_u[:, :6], axis=0)), 1, atol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(v * wanted_v[:6], axis=1)), 1, atol=1e-4)
    np.testing.assert_allclose(u.T @ u, np.eye(6), atol=1e-5)
    assert (u[np.abs(u).argmax(0), np.arange(6)] > 0).all()


def test_power_iterations_find_what_one_pass_misses():
    """Flat spectra are hard: each further iteration comes nearer to the best error."""
    x = decaying(rate=0.97, seed=1)
    best = np.sqrt((scipy.linalg.svdvals(x)[5:] ** 2).sum())

    def error(power):
        u, s, v = svd(x, 5, method="randomized", key=KEY, oversampling=2, power=power)
        return float(np.linalg.norm(x - np.asarray((u * s[None, :]) @ v)) / best)

    errors = [error(power) for power in (0, 1, 4)]
    assert errors[0] > errors[1] > errors[2] >= 1 - 1e-5
    assert errors[2] < 1.01


def test_random_subspaces_depend_on_the_key_alone():
    x = decaying(rate=0.95)

    def draw(seed):
        return svd(x, 3, method="randomized", key=jax.random.key(seed), power=0, oversampling=0)[1]

    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(4)).any()


def test_no_two_factors_come_nearer():
    """Eckart and Young: the error is that of the singular values left out."""
    x = decaying(rate=0.9)
    a, b = (np.asarray(part) for part in factorize(x, 7))
    wanted = np.sqrt((scipy.linalg.svdvals(x.astype(np.float64))[7:] ** 2).sum())
    np.testing.assert_allclose(np.linalg.norm(x - a @ b), wanted, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=1), rtol=1e-4)


def test_stacked_matrices_are_factored_one_by_one():
    x = np.stack([decaying(9, 6, seed=seed) * scale for seed, scale in ((0, 1.0), (1, 100.0))])
    a, b = factorize(x, 2)
    for i in range(2):
        alone = factorize(x[i], 2)
        np.testing.assert_allclose(a[i] @ b[i], alone[0] @ alone[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 3e38])
def test_scales_at_the_ends_of_the_floats_are_safe(scale):
    x = (decaying(8, 6) / np.abs(decaying(8, 6)).max() * scale).astype(np.float32)
    product = np.matmul(*factorize(x, 6))
    assert np.isfinite(product).all()
    if scale > 1e-38:
        np.testing.assert_allclose(product / scale, x / scale, atol=1e-4)


def test_nothing_finite_gives_no_nan_and_leaves_a_way_back():
    x = np.zeros((5, 4), np.float32)
    x[0, 0], x[1, 1] = np.nan, np.inf
    a, b = factorize(x, 2)
    assert not np.matmul(a, b).any()
    grad = jax.grad(lambda a: (jnp.matmul(a, b) * jnp.ones((5, 4))).sum())(a)
    assert np.isfinite(grad).all()
    assert np.abs(grad).max() > 0.5


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
def test_rank_for_energy_is_the_least(energy):
    x = decaying(12, 8, rate=0.6)
    squares = scipy.linalg.svdvals(x.astype(np.float64)) ** 2
    rank = rank_for_energy(x, energy)
    assert squares[:rank].sum() >= energy * squares.sum() * (1 - 1e-9)
    assert rank == 1 or squares[: rank - 1].sum() < energy * squares.sum()


def test_of_many_matrices_each_keeps_its_energy():
    two = jnp.stack([jnp.diag(jnp.array([1.0, 0.0, 0.0])), jnp.eye(3)])
    assert rank_for_energy(two, 0.9) == 3
    assert rank_for_energy(two[:1], 0.9) == 1
    assert rank_for_energy(jnp.zeros((3, 2)), 0.9) == 1


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueRangeError, match="rank=5 of shape"):
        svd(jnp.ones((8, 4)), 5)
    with pytest.raises(ValueRangeError, match=r"give key=jax\.random\.key\(0\)"):
        svd(jnp.ones((8, 4)), 2, method="randomized")
