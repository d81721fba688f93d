"""Weight sharing against scikit-learn's k-means and the exact optimum in one dimension."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

import nnopt_jax as nnopt
from nnopt_jax.arrays import Codebook


def _samples(kind: str, size: int) -> np.ndarray:
    draw = np.random.default_rng(5)
    if kind == "normal":
        return draw.normal(size=size).astype(np.float32)
    if kind == "laplace":
        return draw.laplace(size=size).astype(np.float32)
    centers = draw.choice([-1.0, 0.25, 2.0], size=size)
    return (centers + 0.05 * draw.normal(size=size)).astype(np.float32)


def _distortion(values: np.ndarray, shown: np.ndarray) -> float:
    return float(((values.astype(np.float64) - shown) ** 2).sum())


def _optimum(values: np.ndarray, clusters: int) -> float:
    """The least distortion of all: clusters of sorted values are intervals, so costs add up."""
    x = np.sort(values.astype(np.float64))
    sums = np.concatenate([[0], np.cumsum(x)])
    squares = np.concatenate([[0], np.cumsum(x * x)])
    start, stop = np.arange(x.size)[:, None], np.arange(1, x.size + 1)[None]
    number = np.maximum(stop - start, 1)
    cost = squares[stop] - squares[start] - (sums[stop] - sums[start]) ** 2 / number
    cost = np.where(stop > start, np.maximum(cost, 0), np.inf)
    best = np.concatenate([[0.0], cost[0]])
    for _ in range(clusters - 1):
        best = np.concatenate([[0.0], (best[:-1, None] + cost).min(0)])
    return float(best[-1])


def _shown(values: np.ndarray, clusters: int, **settings: object) -> np.ndarray:
    tx = nnopt.compression.codebook(clusters, **settings)
    params = {"w": jnp.asarray(values.reshape(-1, 20))}
    return np.asarray(tx.apply(params, tx.init(params))["w"]).ravel()


@pytest.mark.parametrize("clusters", [2, 8, 16])
@pytest.mark.parametrize("kind", ["normal", "laplace", "clustered"])
def test_distortion_is_near_the_optimum(kind, clusters):
    values = _samples(kind, 600)
    got = _distortion(values, _shown(values, clusters, iterations=100))
    best = _optimum(values, clusters)
    assert got >= best * (1 - 1e-5)
    assert got <= best * 1.25


@pytest.mark.parametrize("clusters", [4, 16])
def test_no_worse_than_sklearn_from_the_same_start(clusters):
    """Lloyd's algorithm from evenly spaced entries, on a histogram here, on all values there."""
    values = _samples("normal", 4000)
    low, high = float(values.min()), float(values.max())
    start = low + (high - low) * (np.arange(clusters) + 0.5) / clusters
    theirs = KMeans(clusters, init=start[:, None], n_init=1, max_iter=100, tol=0).fit(
        values[:, None].astype(np.float64)
    )
    got = _distortion(values, _shown(values, clusters, init="linear", iterations=100))
    assert got <= theirs.inertia_ * 1.005


def test_every_weight_takes_its_nearest_entry():
    values = _samples("laplace", 600)
    tx = nnopt.compression.codebook(8)
    params = {"w": jnp.asarray(values.reshape(-1, 20))}
    leaf = tx.encode(params, tx.init(params))["w"]
    assert isinstance(leaf, Codebook)
    table = np.asarray(leaf.table, np.float64)
    distance = np.abs(values.reshape(-1, 20, 1) - table)
    chosen = np.take_along_axis(distance, np.asarray(leaf.indices)[..., None].astype(int), -1)
    np.testing.assert_allclose(chosen[..., 0], distance.min(-1), atol=1e-6)


def test_entries_are_means_of_their_clusters():
    values = _samples("clustered", 600)
    shown = _shown(values, 3, iterations=100)
    for level in np.unique(shown):
        np.testing.assert_allclose(values[shown == level].mean(), level, rtol=1e-4)
