"""Merges of models against NumPy, entry by entry."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import nnopt_jax as nnopt
from nnopt_jax.errors import CompositionError, SelectionError, ShapeError, ValueRangeError
from nnopt_jax.transfer import slerp, soup, task_arithmetic, ties

F64 = np.float64
RNG = np.random.default_rng(3)


def models(count, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [
        {"a": {"w": rng.normal(size=(4, 6)).astype(dtype)}, "b": rng.normal(size=5).astype(dtype)}
        for _ in range(count)
    ]


def leaves(tree):
    return [np.asarray(x, F64) for x in jax.tree.leaves(tree)]


def test_soup_is_the_weighted_mean():
    three, weights = models(3), [1, 2, 0.5]
    for got, *x in zip(leaves(soup(three, weights)), *map(leaves, three), strict=True):
        np.testing.assert_allclose(
            got, np.average(x, axis=0, weights=weights), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    "weights",
    [
        np.float32([1, 3]),
        jnp.array([1.0, 3.0]),
        [np.float32(1), np.int64(3)],
        [jnp.float32(1), 3],
        (1, 3),
    ],
)
def test_weights_of_any_kind_of_number(weights):
    found = soup([{"w": np.float32([4.0])}, {"w": np.float32([8.0])}], weights)
    np.testing.assert_allclose(found["w"], [7.0], rtol=1e-6)


def test_t_may_be_traced():
    a, b = models(2)
    found = jax.jit(slerp)(a, b, jnp.float32(0.3))
    for got, wanted in zip(leaves(found), leaves(slerp(a, b, 0.3)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)


def test_task_arithmetic_adds_differences():
    base, a, b = models(3)
    found = task_arithmetic(base, [a, b], [0.5, -1.5])
    for got, start, x, y in zip(*map(leaves, (found, base, a, b)), strict=True):
        wanted = start + 0.5 * (x - start) - 1.5 * (y - start)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_nothing_added_gives_the_base_to_the_bit():
    base = models(1)[0]
    for got, wanted in zip(leaves(task_arithmetic(base, [])), leaves(base), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("scope", ["leaf", "tree"])
def test_slerp_is_the_arc(scope, t):
    a, b = models(2)

    def arc(x, y, all_x, all_y):
        cosine = all_x @ all_y / np.linalg.norm(all_x) / np.linalg.norm(all_y)
        angle = np.arccos(cosine)
        return (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)

    whole = [np.concatenate([x.ravel() for x in leaves(tree)]) for tree in (a, b)]
    for got, x, y in zip(leaves(slerp(a, b, t, scope=scope)), leaves(a), leaves(b), strict=True):
        of = whole if scope == "tree" else (x.ravel(), y.ravel())
        np.testing.assert_allclose(got, arc(x, y, *of), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("other", [[2.0, 4.0], [-1.0, -2.0], [0.0, 0.0]])
def test_slerp_of_parallel_or_no_directions_is_a_line(other):
    x, y = np.float32([1.0, 2.0]), np.float32(other)
    np.testing.assert_allclose(slerp(x, y, 0.25), 0.75 * x + 0.25 * y, rtol=1e-6)


def numpy_arc(x, y, t):
    x, y = (np.asarray(one, F64) for one in (x, y))
    cosine = (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y)
    angle = np.arctan2(np.sqrt((1 - cosine) * (1 + cosine)), cosine)
    return (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)


@pytest.mark.parametrize("scope", ["leaf", "tree"])
@pytest.mark.parametrize(("one", "other"), [(1e19, 1e19), (1e-20, 1e-20), (1e30, 1e-30)])
def test_slerp_is_the_arc_at_every_scale(scope, one, other):
    x, y = (RNG.normal(size=(5, 7)) * size for size in (one, other))
    x, y = x.astype(np.float32), y.astype(np.float32)
    found = slerp({"w": x}, {"w": y}, 0.3, scope=scope)["w"]
    wanted = numpy_arc(x, y, 0.3)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("cosine", [0.99, 0.9996, 0.99999, 1 - 1e-6, 1 - 1e-7])
def test_slerp_is_the_arc_of_near_directions(cosine):
    angle = np.arccos(cosine)
    x, y = np.float32([1, 0]), np.float32([100 * np.cos(angle), 100 * np.sin(angle)])
    np.testing.assert_allclose(slerp(x, y, 0.5), numpy_arc(x, y, 0.5), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("scope", ["leaf", "tree"])
def test_slerp_has_a_gradient_at_zero(scope):
    y = jnp.array([1.0, 2.0])
    slope = jax.grad(lambda x: slerp({"w": x}, {"w": y}, 0.25, scope=scope)["w"].sum())(0 * y)
    np.testing.assert_allclose(slope, [0.75, 0.75], rtol=1e-6)  # that of the line


def test_slerp_over_axes_that_are_explicit():
    mesh = jax.make_mesh((4, 2), ("a", "b"), (AxisType.Explicit, AxisType.Explicit))
    x, y = (RNG.normal(size=(8, 4)).astype(np.float32) for _ in range(2))
    split = NamedSharding(mesh, PartitionSpec("a", "b"))
    for scope in ("leaf", "tree"):
        found = slerp(jax.device_put(x, split), jax.device_put(y, split), 0.3, scope=scope)
        np.testing.assert_allclose(found, numpy_arc(x, y, 0.3), rtol=1e-5, atol=1e-5)


def reference_ties(base, others, weights, density, scale, vote):
    """As the paper tells it, one entry at a time."""
    found = []
    for start, *x in zip(leaves(base), *map(leaves, others), strict=True):
        kept = []
        for one in x:
            delta = np.float32(one - start).ravel().astype(F64)
            order = np.argsort(-np.abs(delta), kind="stable")[: int(density * delta.size)]
            kept.append(np.where(np.isin(np.arange(delta.size), order), delta, 0))
        out = np.zeros(start.size)
        for i in range(start.size):
            deltas = [k[i] for k in kept]
            ballots = [w * d if vote == "weighted" else d for w, d in zip(weights, deltas)]  # noqa: B905
            sign = 1 if sum(ballots) >= 0 else -1
            agree = [k for k, ballot in enumerate(ballots) if np.sign(ballot) == sign]
            count = sum(weights[k] if vote == "weighted" else 1 for k in agree)
            if agree and count:
                out[i] = sum(weights[k] * deltas[k] for k in agree) / count
        found.append(start + scale * out.reshape(start.shape))
    return found


@pytest.mark.parametrize("vote", ["weighted", "unweighted"])
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_ties_elects_and_averages(vote, density):
    base, *others = models(4)
    weights = [1.0, 0.3, 2.0]
    found = ties(base, others, weights, density=density, scale=0.7, vote=vote)
    wanted = reference_ties(base, others, weights, density, 0.7, vote)
    for got, one in zip(leaves(found), wanted, strict=True):
        np.testing.assert_allclose(got, one, rtol=1e-5, atol=1e-6)


def test_dtypes_are_those_of_the_first_and_counters_stay():
    half, full = models(1, dtype=np.float16)[0], models(1)[0]
    half, full = half | {"steps": np.int32(3)}, full | {"steps": np.int32(9)}
    for tree in (soup([half, full]), slerp(half, full, 0.5), ties(half, [full])):
        assert tree["a"]["w"].dtype == np.float16
        assert tree["steps"] == 3


def test_complex_numbers_are_two_reals():
    a, b = (RNG.normal(size=(2, 7)).astype(np.float32) for _ in range(2))
    whole = [{"w": x[0] + 1j * x[1]} for x in (a, b)]
    apart = [{"w": x.T} for x in (a, b)]
    for merge in (
        soup,
        lambda both: slerp(*both, 0.3),
        lambda both: slerp(*both, 0.3, scope="tree"),
        lambda both: ties(both[0], both[1:], density=0.5),
    ):
        found, wanted = merge(whole)["w"], merge(apart)["w"]
        assert found.dtype == np.complex64
        np.testing.assert_allclose(found, wanted[:, 0] + 1j * wanted[:, 1], rtol=1e-6)
    np.testing.assert_allclose(soup(whole)["w"], (whole[0]["w"] + whole[1]["w"]) / 2, rtol=1e-5)


def test_other_kinds_of_numbers_are_told():
    a = {"w": np.ones(2, np.int32), "c": np.ones(2, np.complex64)}
    with pytest.raises(ShapeError, match=r"(?s)2 problems.*c: is complex64.*w: is int32.*cast one"):
        soup([a, {"w": np.ones(2, np.float32), "c": np.ones(2, np.float32)}])


def test_expressions_are_shown():
    params = models(1)[0]
    tx = nnopt.quantization.uniform(8)
    packed = tx.pack(params, tx.init(params))
    shown = nnopt.materialize(packed)
    for got, wanted in zip(leaves(soup([packed])), leaves(shown), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("merge", [lambda a, b: soup([a, b]), lambda a, b: ties(a, [b])])
def test_models_that_do_not_agree_are_told_leaf_by_leaf(merge):
    a, b = models(2)
    with pytest.raises(
        SelectionError, match=r"3 problems\n  a/v: is in .*\n  a/w: is not in .*\n  b: "
    ):
        merge(a, {"a": {"v": b["a"]["w"]}})
    with pytest.raises(ShapeError, match=r"b: is float32\[5\] in .*float32\[4\] in model 1"):
        merge(a, {**b, "b": b["b"][:4]})


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda a: soup(a), ValueRangeError, "is not a list; give models one by one"),
        (lambda a: ties(a, a), ValueRangeError, "is not a list"),
        (lambda a: task_arithmetic(a, 3), ValueRangeError, "is not a list"),
        (lambda a: soup([a, {"a": {"w": 1.0}, "b": 2.0}]), CompositionError, "model 1: 2 problems"),
        (lambda a: soup([jax.eval_shape(lambda: a)]), CompositionError, "b: is a shape"),
    ],
)
def test_what_is_no_model_is_told(call, kind, text):
    with pytest.raises(kind, match=text):
        call(models(1)[0])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda a, b: soup([]), "models=.* is empty"),
        (lambda a, b: soup([a, b], [1.0]), "weights=.* has 1 values for 2 models"),
        (lambda a, b: soup([a, b], [1.0, -1.0]), "sums to zero"),
        (lambda a, b: soup([a, b], [1.0, float("nan")]), "is not a number"),
        (
            lambda a, b: soup([a, b], ["x", 1]),
            "^transfer.soup: weights='x' is not a number [^\n]*$",
        ),
        (lambda a, b: soup([]), "^transfer.soup: models=[^\n]*$"),
        (lambda a, b: soup([a, b], np.ones((2, 2))), "2 problems"),
        (lambda a, b: slerp(a, b, 1.5), "t=1.5"),
        (lambda a, b: slerp(a, b, 0.5, scope="tre"), "Did you mean tree"),
        (lambda a, b: ties(a, [b], density=2, vote="x"), "2 problems"),
    ],
)
def test_settings_out_of_range(call, text):
    with pytest.raises(ValueRangeError, match=text):
        call(*models(2))


def test_merges_work_under_jit():
    base, *others = models(3)
    eager, jitted = ties(base, others, density=0.5), jax.jit(lambda b, o: ties(b, o, density=0.5))
    for got, wanted in zip(leaves(jitted(base, others)), leaves(eager), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)
    assert jnp.issubdtype(jax.jit(soup)(others)["b"].dtype, jnp.floating)
