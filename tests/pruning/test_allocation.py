"""Allocations against independent implementations in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import ValueRangeError
from nnopt_jax.pruning import allocation

LENET = {"conv1": (5, 5, 1, 6), "conv2": (5, 5, 6, 16), "fc1": (400, 120), "fc2": (120, 84),
         "fc3": (84, 10)}  # fmt: skip
NETS = {
    "lenet": LENET,
    "bias": LENET | {"bias": (120,), "scale": (1,)},
    "equal": {"a": (8, 8), "b": (8, 8), "c": (8, 8)},
    "one": {"a": (30, 7)},
}


def iterated_erk(shapes, sparsity):
    """Evci et al.: scale the ratios to the total; what exceeds 1 becomes dense; once more."""
    size = {name: np.prod(shape) for name, shape in shapes.items()}
    ratio = {name: np.sum(shape) / size[name] for name, shape in shapes.items()}
    dense = set()
    while len(dense) < len(shapes):
        left = [name for name in shapes if name not in dense]
        wanted = (1 - sparsity) * sum(size.values()) - sum(size[name] for name in dense)
        epsilon = wanted / sum(ratio[name] * size[name] for name in left)
        full = [name for name in left if epsilon * ratio[name] > 1 + 1e-12]
        if not full:
            break
        dense |= {name for name in full if ratio[name] == max(ratio[n] for n in full)}
    return {n: 0.0 if n in dense else 1 - epsilon * ratio[n] for n in shapes}


@pytest.mark.parametrize("net", NETS)
def test_erk_is_the_iterated_one(net):
    shapes = NETS[net]
    size = {name: np.prod(shape) for name, shape in shapes.items()}
    traced = jax.jit(lambda s: allocation.erk(shapes, s))
    for sparsity in (0.0, 0.1, 0.5, 0.8, 0.9, 0.95, 0.999, 1.0):
        wanted = iterated_erk(shapes, sparsity)
        found = allocation.erk(shapes, sparsity)
        again = traced(jnp.float32(sparsity))
        for name in shapes:
            assert found[name] == pytest.approx(wanted[name], abs=1e-9)
            assert float(again[name]) == pytest.approx(wanted[name], abs=1e-5)
        zeros = sum(found[name] * size[name] for name in shapes)
        assert zeros == pytest.approx(sparsity * sum(size.values()), abs=1e-6 * sum(size.values()))


def lamp_by_its_formula(weights):
    """Every sum from scratch; of equal weights the earlier counts as the greater."""
    square = weights.astype(np.float64).ravel() ** 2
    place = np.arange(square.size)
    scores = [
        x / max(square[(square > x) | ((square == x) & (place <= i))].sum(), 1e-300)
        for i, x in enumerate(square)
    ]
    return np.reshape(scores, weights.shape)


@pytest.mark.parametrize("ties", [False, True])
def test_lamp_is_its_formula(ties):
    weights = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    weights = np.round(weights) if ties else weights
    found = allocation.lamp(jnp.asarray(weights))
    np.testing.assert_allclose(found, lamp_by_its_formula(weights), rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_lamp_of_extreme_weights_is_finite(value):
    found = np.asarray(allocation.lamp(jnp.full((4,), value)))
    np.testing.assert_allclose(found, [1, 1 / 2, 1 / 3, 1 / 4] if value else 0, rtol=1e-6)


@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_lamp_masks_are_a_sort_of_all_scores(sparsity):
    draw = np.random.default_rng(1)
    sizes = {"a": (1, (6, 5)), "b": (50, (4, 8)), "c": (0.1, (3, 3))}
    params = {n: draw.normal(scale=scale, size=shape).astype(np.float32)
              for n, (scale, shape) in sizes.items()}  # fmt: skip
    scores = np.concatenate([lamp_by_its_formula(x).ravel() for x in params.values()])
    wanted = np.zeros(scores.size, bool)
    wanted[np.argsort(-scores, kind="stable")[: round(scores.size * (1 - sparsity))]] = True
    state = nnopt.pruning.magnitude(sparsity, allocation="lamp").init(params)
    masks = np.concatenate([np.asarray(state.rest[name]["mask"]).ravel() for name in params])
    np.testing.assert_array_equal(masks, wanted)


def test_lamp_keeps_the_greatest_of_each_leaf():
    """The paper's reason for it: the last weight of a leaf scores 1, and no leaf is emptied."""
    params = {"large": jnp.full((10, 10), 100.0), "small": jnp.full((2, 2), 1e-6)}
    sparsity = 1 - 2 / 104
    kept = {}
    for way in ("global", "lamp"):
        state = nnopt.pruning.magnitude(sparsity, allocation=way).init(params)
        kept[way] = [int(state.rest[name]["mask"].sum()) for name in params]
    assert kept == {"global": [2, 0], "lamp": [1, 1]}


def test_an_allocation_of_ones_own():
    """Given the shapes and the sparsity; what it returns is kept to the weight."""

    def first_dense(shapes, sparsity):
        assert shapes == {"a": (4, 5), "b": (10, 2)}
        return {"a": 0.0, "b": sparsity}

    params = {"a": jnp.arange(20.0).reshape(4, 5), "b": jnp.arange(20.0).reshape(10, 2)}
    for sparsity in (0.75, nnopt.pruning.one_shot(0.75, 0)):
        state = nnopt.pruning.magnitude(sparsity, allocation=first_dense).init(params)
        assert [int(state.rest[n]["mask"].sum()) for n in params] == [20, 5]


def test_an_allocation_that_leaves_leaves_out():
    tx = nnopt.pruning.magnitude(0.5, allocation=lambda shapes, sparsity: {"a": -0.5})
    with pytest.raises(
        ValueRangeError, match=r"(?s)2 problems.*a: was given sparsity -0.5.*b: was"
    ):
        tx.init({"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))})


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda shapes, s: None, r"the function returned None; return a sparsity for each path"),
        (lambda shapes, s: {"k": "a"}, r"k: was given sparsity 'a', which is not a number"),
    ],
)
def test_an_allocation_that_returns_no_sparsities_says_so(function, text):
    tx = nnopt.pruning.magnitude(0.5, allocation=function)
    with pytest.raises(ValueRangeError, match=text):
        tx.init({"k": jnp.ones((4, 4))})
