from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from nnopt_jax.errors import ValueRangeError
from nnopt_jax.ops.clustering import kmeans, partition
from nnopt_jax.ops.histogram import compand, uncompand
from nnopt_jax.ops.lookup_tables import assign


def optimum(x: np.ndarray, weight: np.ndarray, clusters: int) -> float:
    """The least weighted distortion, by dynamic programming over all divisions."""
    order = np.argsort(x)
    x, weight = x[order].astype(np.float64), weight[order].astype(np.float64)
    w, s, q = (np.concatenate([[0], np.cumsum(v)]) for v in (weight, weight * x, weight * x * x))
    total = w[None, :] - w[:, None]
    cost = q[None, :] - q[:, None] - (s[None, :] - s[:, None]) ** 2 / np.where(total > 0, total, 1)
    cost = np.where(np.tri(len(w), k=-1, dtype=bool), np.inf, np.maximum(cost, 0))
    best = cost[0]
    for _ in range(clusters - 1):
        best = np.min(best[:, None] + cost, axis=0)
    return float(best[-1])


def distortion(x: np.ndarray, weight: np.ndarray, table: np.ndarray) -> float:
    distance = np.min((x[:, None].astype(np.float64) - np.asarray(table, np.float64)) ** 2, axis=1)
    return float(np.sum(weight * distance))


def samples(size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(size)
    normal = rng.standard_normal(size)
    outlier = normal.copy()
    outlier[-1] = 1e6
    found = {
        "normal": normal,
        "laplace": rng.laplace(size=size),
        "uniform": rng.random(size),
        "offset": 1000 + normal,
        "two humps": np.where(normal > 0, normal + 2, normal - 2),
        "half zero": np.where(rng.random(size) < 0.5, 0, normal),
        "heavy tails": rng.standard_t(2, size),
        "lognormal": np.exp(2 * normal),
        "outlier": outlier,
    }
    return {name: x.astype(np.float32) for name, x in found.items()}


@pytest.mark.parametrize("name", samples(2))
def test_small_leaves_come_within_two_percent_of_the_optimum(name) -> None:
    x = samples(300)[name]
    for clusters in (2, 5, 16, 64):
        table = kmeans(x, clusters)
        assert table.dtype == jnp.float32
        assert table.shape == (clusters,)
        assert (np.diff(table) >= 0).all()
        best = optimum(x, np.ones(300), clusters)
        assert distortion(x, np.ones(300), table) <= 1.02 * best + 1e-9


@pytest.mark.parametrize("name", ["normal", "half zero", "outlier"])
def test_many_values_come_within_two_percent_of_scikit_learn(name) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    x = samples(20_000)[name]
    model = cluster.KMeans(16, n_init=1, random_state=0).fit(x[:, None])
    assert distortion(x, np.ones(x.size), kmeans(x, 16)) <= 1.02 * model.inertia_


@given(
    x=arrays(np.float32, 40, elements=st.floats(-100, 100, width=16)),
    weight=arrays(np.float32, 40, elements=st.integers(0, 3)),
    mask=arrays(bool, 40),
)
def test_masks_and_weights(x, weight, mask) -> None:
    weighed = np.where(mask, weight, 0)
    x = np.where(mask, x, np.nan).astype(np.float32)  # what is masked out does not matter
    table = np.asarray(kmeans(x, 4, mask=mask, weights=weight))
    assert np.isfinite(table).all()
    known = np.where(mask, x, 0)
    best = optimum(known, weighed, 4)
    assert distortion(known, weighed, table) <= 1.02 * best + 1e-4


@pytest.mark.parametrize(
    "init",
    [
        "linear",
        "random",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("density", "quantile")),
    ],
)
def test_starts_never_get_worse_and_stay_finite(init) -> None:
    x = samples(300)["laplace"]
    key = jax.random.key(0)
    tables = [kmeans(x, 8, init=init, iterations=n, key=key) for n in (0, 1, 20)]
    errors = [distortion(x, np.ones(300), table) for table in tables]
    assert errors[0] * 1.0001 >= errors[1] >= errors[2] * 0.9999
    assert np.isfinite(errors).all()


def test_linear_start_is_even() -> None:
    table = kmeans(np.linspace(-1, 1, 100, dtype=np.float32), 4, init="linear", iterations=0)
    np.testing.assert_allclose(table, [-0.75, -0.25, 0.25, 0.75], atol=1e-6)


def test_few_distinct_values_are_met_exactly() -> None:
    values = np.array([-3.3, 0.1, 0.7], np.float32)
    x = np.random.default_rng(0).choice(values, 1000)
    table = kmeans(x, 8)
    np.testing.assert_array_equal(np.unique(table), values)
    np.testing.assert_array_equal(np.asarray(table)[assign(x, table)], x)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([], [0, 0]),
        ([np.nan, np.nan], [0, 0]),
        ([7, 7, 7], [7, 7]),
        ([np.inf, 1, 2, -np.inf, np.nan], [1, 2]),
        ([1e38, -3e38, 1e38], [-3e38, 1e38]),
        ([0, 0, 0, 1e-30], [0, 1e-30]),
    ],
)
@pytest.mark.parametrize("init", ["density", "quantile", "linear"])
def test_odd_leaves(values, wanted, init) -> None:
    padded = values + [np.nan] * (len(values) and 5 - len(values))  # one program for all but []
    table = kmeans(np.array(padded, np.float32), 2, init=init)
    assert np.isfinite(table).all()
    if init == "density":
        np.testing.assert_array_equal(table, np.array(wanted, np.float32))


def test_scalar_bfloat16_and_no_gradient() -> None:
    np.testing.assert_array_equal(kmeans(jnp.bfloat16(3.0), 2), [3.0, 3.0])
    grad = jax.grad(lambda x: jnp.sum(kmeans(x, 2)))(jnp.arange(4.0))
    assert not grad.any()


def test_vmap_equals_each() -> None:
    x = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    tables = jax.vmap(lambda row: kmeans(row, 4, bins=1024))(x)
    for row, table in zip(x, tables, strict=True):
        np.testing.assert_allclose(table, kmeans(row, 4, bins=1024), rtol=1e-6)


def test_sharded_fit_and_assignment() -> None:
    x = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    placed = jax.device_put(x, NamedSharding(mesh, P("a", "b")))
    table = kmeans(x, 16)
    np.testing.assert_allclose(kmeans(placed, 16), table, atol=1e-6)
    index = jax.jit(assign)(placed, table)
    assert index.sharding.is_equivalent_to(placed.sharding, 2)
    np.testing.assert_array_equal(index, assign(x, table))


@pytest.mark.parametrize("clusters", [1, 2, 16, 33, 256, 300, 4096])
@pytest.mark.parametrize("kind", ["plain", "outlier", "repeated", "constant"])
def test_assign_is_exact(clusters, kind) -> None:
    rng = np.random.default_rng(clusters)
    table = np.sort(rng.standard_normal(clusters)).astype(np.float32)
    if kind == "outlier":
        table[-1] = 1e6
    if kind == "repeated":
        table = table.round(1) + np.float32(0.0)
    if kind == "constant":
        table[:] = 3.0
    middles = table[:-1] / np.float32(2) + table[1:] / np.float32(2)
    near = [np.nextafter(middles, np.float32(sign * np.inf)) for sign in (-1, 1)]
    x = np.concatenate([rng.standard_normal(1000).astype(np.float32) * 2, table, middles, *near])
    x = np.where(np.abs(x) < 1e-37, 0, x)  # compilers take subnormals for 0
    x = np.append(x, np.array([np.inf, -np.inf], np.float32))
    index = jax.jit(assign)(x, table)
    assert index.dtype == (jnp.uint8 if clusters <= 256 else jnp.uint16)
    np.testing.assert_array_equal(index, np.searchsorted(middles, x))
    assert assign(np.float32(np.nan), table) == 0


@given(
    place=arrays(np.float32, 12, elements=st.integers(-50, 50)),
    weight=arrays(np.float32, 12, elements=st.integers(0, 3)),
    parts=st.sampled_from([1, 3, 12]),
)
def test_partition_is_optimal(place, weight, parts) -> None:
    place = np.sort(place)
    edges = np.asarray(jax.jit(partition, static_argnums=(2, 3))(place, weight, parts, 12))
    assert edges[0] == 0
    assert edges[-1] == 12
    assert (np.diff(edges) >= 0).all()
    cost = 0.0
    for begin, end in itertools.pairwise(edges):
        if weight[begin:end].sum() > 0:
            mean = np.average(place[begin:end], weights=weight[begin:end])
            cost += np.sum(weight[begin:end] * (place[begin:end] - mean) ** 2)
    np.testing.assert_allclose(cost, optimum(place, weight, parts), rtol=1e-4, atol=1e-3)


def test_compand_is_monotone_and_inverts() -> None:
    y = np.sort(np.random.default_rng(0).standard_normal(1000) * np.logspace(-3, 30, 1000))
    y = y.astype(np.float32)
    u = compand(jnp.asarray(y))
    assert (np.diff(u) >= 0).all()
    np.testing.assert_allclose(uncompand(u), y, rtol=1e-4)
    np.testing.assert_array_equal(compand(jnp.array([-jnp.inf, jnp.inf])), [-129, 129])


def test_bad_arguments() -> None:
    x = np.ones(3, np.float32)
    with pytest.raises(ValueRangeError, match="clusters=0"):
        kmeans(x, 0)
    with pytest.raises(ValueRangeError, match="init='best'"):
        kmeans(x, 2, init="best")
    with pytest.raises(ValueRangeError, match=r"give key=jax.random.key\(0\)"):
        kmeans(x, 2, init="random")
    with pytest.raises(ValueRangeError, match="bins=10"):
        kmeans(x, 2, bins=10)
