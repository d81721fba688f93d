"""Uniform quantization: when ranges move, what they ignore, and where gradients stop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.arrays import Bits

PARAMS = {"kernel": jax.random.normal(jax.random.key(0), (8, 6))}


def _scale(state):
    return np.asarray(state.rest["kernel"][0]["scale"])


@pytest.mark.parametrize("every", [1, 3])
def test_range_follows_the_weights(every):
    tx = nnopt.quantization.uniform(8, every=every)
    state = tx.init(PARAMS)
    doubled = {"kernel": 2 * PARAMS["kernel"]}
    first = _scale(state)
    for count in range(1, 5):
        _, state = tx.update(doubled, state)
        np.testing.assert_array_equal(_scale(state), first * (2 if count >= every else 1))


def test_gradient_stops_outside_a_range_that_lags():
    tx = nnopt.quantization.uniform(4, every=100)
    state = tx.init(PARAMS)
    top = float(jnp.abs(PARAMS["kernel"]).max())
    params = {"kernel": PARAMS["kernel"].at[0, 0].set(3 * top).at[1, 0].set(-top)}
    _, grads = nnopt.value_and_grad(lambda p: p["kernel"].sum(), tx)(params, state)
    wanted = np.ones((8, 6))
    wanted[0, 0] = 0
    np.testing.assert_array_equal(grads.train.params["kernel"], wanted)


def test_end_codes_take_the_whole_gradient():
    tx = nnopt.quantization.uniform(8)
    params = {"kernel": jnp.array([[-2.0, 2.0, 0.5]])}
    _, grads = nnopt.value_and_grad(lambda p: p["kernel"].sum(), tx)(params, tx.init(params))
    np.testing.assert_array_equal(grads.train.params["kernel"], [[1.0, 1.0, 1.0]])


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_is_a_point_of_the_grid(symmetric):
    params = {"kernel": PARAMS["kernel"].at[2].set(0) + jnp.arange(8.0)[:, None] * 0}
    tx = nnopt.quantization.uniform(4, symmetric=symmetric)
    shown = np.asarray(tx.apply(params, tx.init(params))["kernel"])
    assert not shown[2].any()
    assert not np.signbit(shown[2]).any()


def test_pruned_weights_have_no_say_in_the_range():
    keeps_small = nnopt.transform.wrapping(
        "small",
        "**",
        init=lambda leaves, start: ({}, {p: jnp.abs(x) < 0.5 for p, x in leaves.items()}),
        encode=lambda leaves, state, train: {
            path: nnopt.arrays.Masked(leaf, state.rest[path]) for path, leaf in leaves.items()
        },
    )
    tx = nnopt.chain(keeps_small, nnopt.quantization.uniform(8))
    _, state = tx.init(PARAMS)
    small = np.asarray(PARAMS["kernel"])
    small = np.abs(small[np.abs(small) < 0.5]).max()
    np.testing.assert_allclose(_scale(state).ravel(), [small / 127], rtol=1e-6)


def test_applied_scale_is_the_stored_one():
    tx = nnopt.quantization.uniform(8, granularity="channel", scale_dtype=jnp.bfloat16)
    state = tx.init(PARAMS)
    packed = tx.pack(PARAMS, state)["kernel"]
    assert packed.scale.dtype == jnp.bfloat16
    codes, scale = np.asarray(packed.codes, np.float32), np.asarray(packed.scale, np.float32)
    np.testing.assert_array_equal(tx.apply(PARAMS, state)["kernel"], codes * scale)


@pytest.mark.parametrize(
    ("bits", "form"),
    [(2, "1.6-bit"), (3, "3-bit"), (4, "4-bit"), (7, "7-bit"), (8, "int8"), (12, "int16")],
)
def test_codes_lie_in_the_smallest_form(bits, form):
    tx = nnopt.quantization.uniform(bits)
    packed = tx.pack(PARAMS, tx.init(PARAMS))["kernel"]
    assert repr(packed).startswith(f"Quantized(codes {form}[8,6], scale float32[1,1], ")


def test_zero_points_are_stored_as_integers_and_not_trained():
    tx = nnopt.quantization.uniform(4, symmetric=False, granularity="channel")
    packed = tx.pack(PARAMS, tx.init(PARAMS))
    assert isinstance(packed["kernel"].zero, Bits)
    free = nnopt.trainable(tx, packed, ())
    assert [leaf.shape for leaf in jax.tree.leaves(free)] == [(1, 6)]


def test_a_table_takes_one_scale_whatever_the_granularity():
    tx = nnopt.chain(
        nnopt.compression.codebook(4), nnopt.quantization.uniform(8, granularity="channel")
    )
    packed = tx.pack(PARAMS, tx.init(PARAMS))["kernel"]
    assert packed.table.scale.shape == (1,)
    assert packed.table.codes.dtype == jnp.int8


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_channel_axis(axis):
    tx = nnopt.quantization.uniform(8, granularity="channel", axis=axis)
    wanted = np.abs(np.asarray(PARAMS["kernel"])).max(1 - axis % 2, keepdims=True) / 127
    np.testing.assert_allclose(_scale(tx.init(PARAMS)), wanted, rtol=1e-6)


@pytest.mark.parametrize("scale_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("bits", [4, 16])
def test_what_a_range_was_fitted_to_keeps_its_gradient(bits, scale_dtype):
    """Zero points and scales are rounded, so that the extremes may lie beyond the ends."""
    tx = nnopt.quantization.uniform(
        bits, symmetric=False, granularity="channel", every=9, scale_dtype=scale_dtype
    )
    params = {"kernel": jax.random.normal(jax.random.key(5), (6, 200)) + 0.3}
    state = tx.init(params)
    leaf = tx.encode(params, state)["kernel"]
    v = params["kernel"] / leaf.scale.astype(jnp.float32) + leaf.zero
    assert ((v < leaf.low) | (v > leaf.high)).sum() > 50, "no case of the kind: proves nothing"
    _, grads = nnopt.value_and_grad(lambda p: p["kernel"].sum(), tx)(params, state)
    assert (grads.train.params["kernel"] == 1).all()
    span = jnp.ptp(params["kernel"], axis=0, keepdims=True)
    far = {"kernel": jnp.concatenate([params["kernel"], params["kernel"].max(0)[None] + span])}
    far = {"kernel": far["kernel"][1:]}
    _, grads = nnopt.value_and_grad(lambda p: p["kernel"].sum(), tx)(far, state)
    assert not grads.train.params["kernel"][-1].any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("range", ["percentile", "mse"])
def test_outliers_are_left_out_and_get_no_gradient(range, symmetric):
    settings = {"granularity": "channel", "range": range, "percent": 95.0, "symmetric": symmetric}
    tx = nnopt.quantization.uniform(3, **settings)
    kernel = jax.random.normal(jax.random.key(1), (64, 2)).at[3, 1].set(9.0)
    mask = jnp.ones((64, 2), bool).at[5, 0].set(False)
    keeps = nnopt.transform.wrapping(
        "some",
        "**",
        init=lambda leaves, start: ({}, {p: mask for p in leaves}),
        encode=lambda leaves, state, train: {
            path: nnopt.arrays.Masked(leaf, state.rest[path]) for path, leaf in leaves.items()
        },
    )
    tx = nnopt.chain(keeps, tx)
    scales = []
    for pruned in (0.0, 100.0):  # what a mask prunes has no say
        params = {"kernel": kernel.at[5, 0].set(pruned)}
        state = tx.init(params)
        scales.append(np.asarray(state[1].rest["kernel"][0]["scale"]))
    np.testing.assert_array_equal(*scales)
    wide = nnopt.quantization.uniform(3, granularity="channel", symmetric=symmetric)
    assert (scales[0] < np.asarray(wide.init({"kernel": kernel}).rest["kernel"][0]["scale"])).all()
    _, grads = nnopt.value_and_grad(lambda p: p["kernel"].sum(), tx)(params, state)
    got = np.asarray(grads.train.params["kernel"])
    assert got[3, 1] == got[5, 0] == 0
    assert (got == 1).sum() > 100


def test_full_percentile_is_the_extremes():
    wide, full = (nnopt.quantization.uniform(8, group=4, **more)
                  for more in ({}, {"range": "percentile", "percent": 100}))  # fmt: skip
    np.testing.assert_array_equal(_scale(wide.init(PARAMS)), _scale(full.init(PARAMS)))


def test_channels_of_zeros_and_nan_make_no_nan():
    kernel = PARAMS["kernel"].at[:, 0].set(0).at[2, 1].set(jnp.nan)
    for range in ("absmax", "percentile", "mse"):
        tx = nnopt.quantization.uniform(8, granularity="channel", range=range, percent=100)
        state = tx.init({"kernel": kernel})
        np.testing.assert_array_equal(_scale(state)[0, :2], [1, 1])
        shown = np.asarray(tx.apply({"kernel": kernel}, state)["kernel"])
        assert np.isnan(shown).sum() == 1, "a broken weight is shown, and only it"
        assert not shown[:, 0].any()


def test_bad_ranges_are_told_with_all_else():
    with pytest.raises(nnopt.errors.ValueRangeError) as caught:
        nnopt.quantization.uniform(17, range="max", granularity="rows")
    assert str(caught.value) == (
        "quantization.uniform: 3 problems\n"
        "  bits=17 is not a whole number from 2 to 16.\n"
        "  granularity='rows' is not one of 'tensor', 'channel'.\n"
        "  range='max' is not one of 'absmax', 'percentile', 'mse', 'mean', 'learned', "
        "'threshold', 'two_sided', 'gguf', 'fixed'. Did you mean absmax?"
    )
