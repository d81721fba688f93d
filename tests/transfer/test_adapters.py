"""Adapters against closed forms, over float and packed bases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax.arrays import Masked, Reshaped, SoftThresholded
from nnopt_jax.errors import SelectionError, ShapeError, ValueRangeError
from nnopt_jax.transfer import dora, freeze, lora

KEY = jax.random.key(0)
F64 = np.float64


def params(shape=(24, 16)):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return {"fc": {"kernel": jnp.asarray(kernel), "bias": jnp.ones(shape[-1])}}


def stirred(state):
    """The state with all factors away from zero."""
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape).astype(np.float32))  # noqa: E731
    return state._replace(learned=jax.tree.map(draw, state.learned))


def kernel_of(tx, tree, state):
    return np.asarray(tx.apply(tree, state)["fc"]["kernel"], F64)


@pytest.mark.parametrize("shape", [(24, 16), (3, 3, 4, 8)])
@pytest.mark.parametrize(
    ("settings", "scale"),
    [({}, 1.0), ({"alpha": 8}, 2.0), ({"alpha": 8, "rank_stabilized": True}, 4.0)],
)
def test_lora_adds_a_scaled_product(shape, settings, scale):
    tree, tx = params(shape), lora(4, **settings)
    state = stirred(tx.init(tree, key=KEY))
    a, b = (np.asarray(state.learned["fc/kernel"][name], F64) for name in "ab")
    wanted = np.asarray(tree["fc"]["kernel"], F64) + scale * (a @ b).reshape(shape)
    np.testing.assert_allclose(kernel_of(tx, tree, state), wanted, rtol=1e-5, atol=1e-5)


def test_dora_turns_and_stretches_columns():
    tree, tx = params(), dora(4, alpha=8)
    state = stirred(tx.init(tree, key=KEY))
    a, b, m = (np.asarray(state.learned["fc/kernel"][k], F64) for k in ("a", "b", "magnitude"))
    v = np.asarray(tree["fc"]["kernel"], F64) + 2 * a @ b
    wanted = m * v / np.linalg.norm(v, axis=0, keepdims=True)
    np.testing.assert_allclose(kernel_of(tx, tree, state), wanted, rtol=1e-5, atol=1e-5)


def test_doras_norm_passes_no_gradient():
    tree, tx = params(), dora(4)
    state = stirred(tx.init(tree, key=KEY))
    slope = np.random.default_rng(2).normal(size=(24, 16)).astype(np.float32)
    _, grads = nnopt.value_and_grad(lambda p: (p["fc"]["kernel"] * slope).sum(), tx)(tree, state)
    found = grads.train.learned["fc/kernel"]
    a, b, m = (np.asarray(state.learned["fc/kernel"][k], F64) for k in ("a", "b", "magnitude"))
    v = np.asarray(tree["fc"]["kernel"], F64) + a @ b
    norm = np.linalg.norm(v, axis=0, keepdims=True)
    through = slope * m / norm  # as if the norm were a constant
    np.testing.assert_allclose(found["a"], through @ b.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["b"], a.T @ through, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        found["magnitude"], (slope * v / norm).sum(0, keepdims=True), rtol=1e-4, atol=1e-5
    )


def test_training_starts_at_the_base():
    tree = params()
    np.testing.assert_array_equal(
        kernel_of(lora(), tree, lora().init(tree, key=KEY)), tree["fc"]["kernel"]
    )
    found = kernel_of(dora(), tree, dora().init(tree, key=KEY))
    np.testing.assert_allclose(found, tree["fc"]["kernel"], rtol=1e-6)


@pytest.mark.parametrize("adapter", [lora, pytest.param(dora, marks=pytest.mark.slow)])
def test_over_a_packed_base_adapters_alone_train(adapter):
    """The bytes of an int4 base stay, the optimizer has no state for them, and the loss falls."""
    tree = params((64, 32))
    grid = nnopt.quantization.uniform(4, group=32, where="**/kernel")
    base = grid.pack(tree, grid.init(tree))
    x, y = jax.random.normal(KEY, (128, 64)), jax.random.normal(jax.random.key(1), (128, 32))

    def loss(p):
        return jnp.square(x @ p["fc"]["kernel"] + p["fc"]["bias"][None] - y).mean()

    tx, optimizer = adapter(8, where="**/kernel"), optax.adam(3e-2)
    state = tx.init(base, key=KEY)
    moments = optimizer.init(nnopt.trainable(tx, base, state))
    assert all("fc/kernel" in path for path in nnopt.tree.flatten(moments[0].mu.learned))
    assert jax.tree.leaves(moments[0].mu.params) == []
    now, losses = base, []
    for _ in range(60):
        value, grads = nnopt.value_and_grad(loss, tx)(now, state)
        updates, moments = optimizer.update(grads.train, moments, nnopt.trainable(tx, now, state))
        now, state = nnopt.step(tx, now, state, updates, grads)
        losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, now, base)
    packed = tx.pack(now, state)
    jax.tree.map(np.testing.assert_array_equal, nnopt.materialize(packed), tx.apply(now, state))


@pytest.mark.parametrize("adapter", [lora, dora])
def test_zeros_of_a_mask_stay(adapter):
    tree = params()
    tx = nnopt.chain(nnopt.pruning.magnitude(0.5, mode="soft"), adapter(4, freeze=None))
    masked, state = tx.init(tree, key=KEY)
    state = (masked, stirred(state))
    zeros = np.asarray(tree["fc"]["kernel"])[~np.asarray(masked.rest["fc/kernel"]["mask"])]
    shown = kernel_of(tx, tree, state)
    assert (shown == 0).sum() == zeros.size
    packed = nnopt.materialize(tx.pack(tree, state))["fc"]["kernel"]
    np.testing.assert_array_equal(packed, tx.apply(tree, state)["fc"]["kernel"])


def sparse(w, format="smallest"):
    """A packed leaf with a quarter of the weights, the greatest."""
    mask = jnp.abs(w) > jnp.quantile(jnp.abs(w), 0.75)
    return Masked(w, mask, format=format).store()


def doubly_masked(w):
    return Masked(sparse(w), jnp.arange(w.size).reshape(w.shape) % 2 == 0).store()


BASES = {
    "bits": lambda w: sparse(w, "bitmask"),
    "gaps": lambda w: sparse(w, "gaps"),
    "shrunk": lambda w: SoftThresholded(sparse(w), jnp.float32(0.1)),
    "masked twice": lambda w: SoftThresholded(doubly_masked(w), jnp.float32(0.1)),
    "view": lambda w: Reshaped.of(sparse(w.T), (1, 0)),
    "adapter": lambda w: dora_over(sparse(w)),
}


def dora_over(leaf):
    tx = dora(2)
    return tx.pack({"w": leaf}, stirred(tx.init({"w": leaf}, key=KEY)))["w"]


@pytest.mark.parametrize("adapter", [lora, dora])
@pytest.mark.parametrize("base", BASES)
def test_zeros_of_a_packed_base_stay(base, adapter):
    """Where the base is zero by a mask, nothing is added; elsewhere all is, as over the dense."""
    kernel = np.random.default_rng(0).normal(size=(24, 16)).astype(np.float32)
    tree, tx = {"w": BASES[base](jnp.asarray(kernel))}, adapter(4)
    before = [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]
    state = stirred(tx.init(tree, key=KEY))
    first = np.asarray(nnopt.materialize(tree)["w"], F64)
    assert (first == 0).mean() >= 0.75
    learned = {name: np.asarray(x, F64) for name, x in state.learned["w"].items()}
    wanted = np.where(first == 0, 0, first + learned["a"] @ learned["b"])
    if adapter is dora:
        norm = np.linalg.norm(wanted, axis=0, keepdims=True)
        wanted = learned["magnitude"] * wanted / np.where(norm > 0, norm, 1)
    shown = np.asarray(tx.apply(tree, state)["w"])
    np.testing.assert_allclose(shown, wanted, rtol=1e-4, atol=1e-5)
    assert not shown[wanted == 0].any()
    packed = tx.pack(tree, state)
    np.testing.assert_array_equal(nnopt.materialize(packed)["w"], shown)
    held = [np.asarray(x).tobytes() for x in jax.tree.leaves(packed)]
    assert [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)] == before
    assert all(array in held for array in before)


def test_grids_after_an_adapter_round_the_base_alone():
    tree = params()
    tx = nnopt.chain(lora(4), nnopt.quantization.uniform(4, where="**/kernel"))
    first, second = tx.init(tree, key=KEY)
    leaf = tx.pack(tree, (stirred(first), second))["fc"]["kernel"]
    assert isinstance(leaf.base, nnopt.arrays.Quantized)
    assert leaf.delta.u.dtype == jnp.float32


def test_freeze_takes_part_in_chains_and_selections():
    tree = {"a": jnp.ones(2), "b": {"c": jnp.ones(3), "n": jnp.arange(2)}, "d": jnp.ones(4)}
    tx = nnopt.chain(freeze("a"), nnopt.at("b/*", freeze("**")))
    moving = nnopt.trainable(tx, tree, tx.init(tree)).params
    assert moving["a"] is None
    assert moving["b"] == {"c": None, "n": None}
    np.testing.assert_array_equal(moving["d"], tree["d"])
    _, grads = nnopt.value_and_grad(lambda p: p["a"].sum() + p["d"].sum(), tx)(tree, tx.init(tree))
    assert grads.train.params["a"] is None
    np.testing.assert_array_equal(grads.dense["a"], np.ones(2))


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: lora(0, alpha=-1), ValueRangeError, "2 problems"),
        (lambda: dora(4, dtype=jnp.int32), ValueRangeError, "is not a dtype of floats"),
        (lambda: lora(4, dtype="float99"), ValueRangeError, "is not a dtype of floats"),
        (lambda: lora(4, dtype=None), ValueRangeError, "is not a dtype of floats"),
        (lambda: dora(4, dtype="float64"), ValueRangeError, "which JAX has turned off"),
        (lambda: lora(2).init(params()), ValueRangeError, "key=jax.random.key"),
        (lambda: lora(2, where="**").init(params(), key=KEY), ShapeError, "fc/bias: has shape"),
        (lambda: freeze("fc/kernl").init(params()), SelectionError, "Nearest: fc/kernel"),
    ],
)
def test_bad_input(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
