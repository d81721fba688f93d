"""Learned steps: start, gradients by the formula of the paper, and what keeps a step sound."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import ShapeError, ValueRangeError
from nnopt_jax.quantization import lsq, lsq_activation, lsq_step

F32 = np.float32
PARAMS = {"kernel": jax.random.normal(jax.random.key(0), (8, 6))}
MASK = np.random.default_rng(0).random((8, 6)) < 0.7
SLOPE = np.cos(np.arange(48)).reshape(8, 6).astype(F32)
SHARED = {"tensor": (0, 1), "channel": 0}


def _keeping(mode: str) -> nnopt.Transform:
    """A fixed mask."""
    return nnopt.transform.wrapping(
        "some",
        "**",
        init=lambda leaves, start: ({}, {path: jnp.asarray(MASK) for path in leaves}),
        encode=lambda leaves, state, train: {
            path: nnopt.arrays.Masked(leaf, state.rest[path], mode=mode)
            for path, leaf in leaves.items()
        },
    )


def _formula(w, step, keep, bits, axes):
    """Values and both gradients of equations 1 to 5, in double precision."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    v = w.astype(np.float64) / step
    inside = (low < v) & (v < high)
    codes = np.clip(np.rint(v), low, high)
    count = np.where(keep, 1, 0).sum(axes, keepdims=True)
    slope = np.where(inside, codes - v, codes) / np.sqrt(count * high)
    dstep = (np.where(keep, SLOPE, 0) * slope).sum(axes, keepdims=True)
    return np.where(keep, codes * step, 0), np.where(inside, SLOPE, 0), dstep


@pytest.mark.isa
@pytest.mark.parametrize("mode", [None, "select", "straight_through"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_start_and_gradients_are_those_of_the_paper(granularity, mode):
    bits, axes = 3, SHARED[granularity]
    keep = np.ones((8, 6), bool) if mode is None else MASK
    links = [] if mode is None else [_keeping(mode)]
    tx = nnopt.chain(*links, lsq(bits, granularity=granularity))
    state = tx.init(PARAMS)
    w, step = np.asarray(PARAMS["kernel"]), np.asarray(state[-1].learned["kernel"][0])
    mean = (np.abs(w) * keep).sum(axes, keepdims=True) / keep.sum(axes, keepdims=True)
    np.testing.assert_allclose(step, 2 * mean / np.sqrt(3), rtol=1e-5)

    step = (step * 0.6).astype(F32)  # so that some weights lie outside
    state = (*state[:-1], state[-1]._replace(learned={"kernel": (jnp.asarray(step),)}))
    shown, dw, dstep = _formula(w, step, keep, bits, axes)
    _, grads = nnopt.value_and_grad(lambda p: (p["kernel"] * SLOPE).sum(), tx)(PARAMS, state)
    np.testing.assert_allclose(tx.apply(PARAMS, state)["kernel"], shown, rtol=1e-6)
    dw = dw if mode == "straight_through" else np.where(keep, dw, 0)
    np.testing.assert_allclose(grads.train.params["kernel"], dw, rtol=1e-6)
    np.testing.assert_allclose(grads.train.learned[-1]["kernel"][0], dstep, rtol=2e-4, atol=1e-6)
    assert (dw == 0).sum() > (~keep).sum() * (mode == "select")


def test_a_broken_step_is_fitted_anew():
    tx = lsq(4, granularity="channel")
    state = tx.init(PARAMS)
    fitted = np.asarray(state.learned["kernel"][0])
    bad = jnp.asarray([[-0.1, 0.0, jnp.nan, jnp.inf, 1e-45, 0.3]])
    _, after = tx.update(PARAMS, state._replace(learned={"kernel": (bad,)}))
    wanted = np.where(np.arange(6) == 5, F32(0.3), fitted)
    np.testing.assert_allclose(after.learned["kernel"][0], wanted, rtol=1e-6)


def test_channels_of_zeros_and_nan_make_no_nan():
    params = {"kernel": PARAMS["kernel"].at[:, 0].set(0).at[2, 1].set(jnp.nan)}
    tx = lsq(4, granularity="channel")
    state = tx.init(params)
    np.testing.assert_array_equal(state.learned["kernel"][0][0, :2], [1, 1])
    shown = np.asarray(tx.apply(params, state)["kernel"])
    assert np.isnan(shown).sum() == 1
    assert not shown[:, 0].any()


def test_the_stored_step_is_the_applied_one():
    tx = lsq(4, scale_dtype=jnp.bfloat16)
    state = tx.init(PARAMS)
    packed = tx.pack(PARAMS, state)["kernel"]
    assert packed.scale.dtype == jnp.bfloat16
    assert state.learned["kernel"][0].dtype == jnp.float32
    codes, scale = np.asarray(packed.codes.materialize(), F32), np.asarray(packed.scale, F32)
    np.testing.assert_array_equal(tx.apply(PARAMS, state)["kernel"], codes * scale)
    assert codes.min() >= -8
    assert codes.max() <= 7


def test_learning_the_step_lowers_the_error():
    tx = lsq(3)
    target = PARAMS["kernel"].at[0, 0].set(6.0)
    params, state = {"kernel": target}, tx.init({"kernel": target})
    state = state._replace(learned=jax.tree.map(lambda s: 0.2 * s, state.learned))
    optimizer = optax.adam(2e-2)

    def loss(shown):
        return jnp.sum((shown["kernel"] - target) ** 2)

    @jax.jit
    def step(params, state, moments):
        value, grads = nnopt.value_and_grad(loss, tx)(params, state)
        moving = nnopt.trainable(tx, params, state)
        # The weights stay, to show what the step alone can do.
        still = grads.train._replace(params=jax.tree.map(jnp.zeros_like, params))
        updates, moments = optimizer.update(still, moments, moving)
        return *nnopt.step(tx, params, state, updates, grads), moments, value

    moments = optimizer.init(nnopt.trainable(tx, params, state))
    values = []
    for _ in range(40):
        params, state, moments, value = step(params, state, moments)
        values.append(float(value))
    assert min(values[-5:]) < 0.5 * values[0]


def test_errors_are_told_at_once():
    with pytest.raises(ValueRangeError) as caught:
        lsq(9, granularity="rows")
    assert str(caught.value) == (
        "quantization.lsq: 2 problems\n"
        "  bits=9 is not a whole number from 2 to 8.\n"
        "  granularity='rows' is not one of 'tensor', 'channel'."
    )
    with pytest.raises(ShapeError, match=r"lsq: kernel: has shape \(8, 2, 3\), and which of"):
        lsq(4, group=3).init({"kernel": PARAMS["kernel"].reshape(8, 2, 3)})
    with pytest.raises(
        ValueRangeError, match="lsq_activation: bits=1 is not a whole number from 2"
    ):
        lsq_activation(jnp.ones(3), 1.0, bits=1)


@pytest.mark.parametrize("signed", [pytest.param(True, marks=pytest.mark.slow), False])
def test_activations_by_the_formula(signed):
    low, high = (-4, 3) if signed else (0, 7)
    x = np.random.default_rng(1).normal(size=(5, 40)).astype(F32)
    x[0, :3] = [low * 0.25, high * 0.25, 0]
    slope = np.cos(np.arange(200)).reshape(5, 40).astype(F32)
    for step in (0.25, -0.25):  # its sign says nothing
        call = lambda x, s: lsq_activation(x, s, 3, signed)  # noqa: E731
        shown, pull = jax.vjp(call, jnp.asarray(x), jnp.float32(step))
        dx, dstep = pull(slope)
        v = x.astype(np.float64) / 0.25
        codes = np.clip(np.rint(v), low, high)
        inner = np.where((low < v) & (v < high), codes - v, codes) / np.sqrt(40 * high)
        np.testing.assert_array_equal(shown, codes * 0.25)
        np.testing.assert_array_equal(dx, np.where((low <= v) & (v <= high), slope, 0))
        np.testing.assert_allclose(dstep * np.sign(step), (slope * inner).sum(), rtol=1e-4)
    start = lsq_step(x, 3, signed)
    np.testing.assert_allclose(start, 2 * np.abs(x).mean() / np.sqrt(high), rtol=1e-5)
    assert float(lsq_step(np.zeros(4, F32))) == float(lsq_step(np.full(4, np.nan, F32))) == 1


def test_a_half_float_step_may_be_small():
    params = {"kernel": 1e-5 * PARAMS["kernel"]}
    tx = lsq(4, scale_dtype=jnp.float16)
    state = tx.init(params)
    step = state.learned["kernel"][0]
    wanted = 2 * np.abs(params["kernel"]).mean() / np.sqrt(7)
    np.testing.assert_allclose(step, wanted.reshape(1, 1), rtol=1e-5)
    shown = np.asarray(tx.apply(params, state)["kernel"])
    assert np.abs(shown - params["kernel"]).max() < np.abs(params["kernel"]).max()
