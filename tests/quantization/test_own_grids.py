"""Grids of one's own are checked, and each range covers, clips and stores as it says."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import ScaleError, ValueRangeError
from nnopt_jax.quantization import Grid, grids, on_grid, ranges

W = np.random.default_rng(7).standard_normal((32, 6)).astype(np.float32)
PARAMS = {"w": jnp.asarray(W)}


def values(tx, params=PARAMS):
    return np.asarray(tx.apply(params, tx.init(params))["w"])


def gradient(tx, params):
    _, grads = nnopt.value_and_grad(lambda p: p["w"].sum(), tx)(params, tx.init(params))
    return np.asarray(jax.tree.leaves(grads.train)[0])


@pytest.mark.parametrize("top", [2, 5, 6, 10, 100])
@pytest.mark.parametrize("size", [{}, {"group": 8}, {"granularity": "channel"}])
def test_integers_that_do_not_fill_their_bits_cover_the_largest_weight(top, size):
    tx = on_grid(Grid("own", -top, top), scale_dtype="float32", **size)
    got, blocks = values(tx), {"group": 8}.get("group", 32) if "group" in size else 32
    pieces = W.reshape(-1, blocks, 6).astype(np.float64)
    axes = (0, 1, 2) if not size else (1,)
    step = np.abs(pieces).max(axes, keepdims=True) / top
    wanted = (np.round(pieces / step) * step).reshape(W.shape)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    state = tx.init(PARAMS)
    np.testing.assert_array_equal(nnopt.materialize(tx.pack(PARAMS, state))["w"], got)


def test_searched_ranges_of_such_integers_are_no_worse():
    grid = Grid("own", -5, 5)
    plain, best = (values(on_grid(grid, range=name)) for name in ("absmax", "mse"))
    assert np.square(best - W).sum() < np.square(plain - W).sum()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Grid("own", 3, -3), r"own: low=3 is not below high=-3"),
        (lambda: Grid("own", -3, 0), r"own: high=0 is not above 0"),
        (lambda: Grid("own", -7.5, 7.5), r"own: 2 problems\n  low=-7.5 is not a whole number"),
        (lambda: Grid("own", -(2**20), 2**20), r"  low=-1048576 is not a whole number from -32"),
        (lambda: Grid("own", 0, 3, levels=(-1.0, 0.5, 1.0)), r"own: levels=.* high=2"),
        (lambda: Grid("own", 1, 3, levels=(-1.0, 0.5, 1.0)), r"own: levels=.* low=0"),
        (lambda: Grid("own", 0, 2, levels=(1.0, 0.5, -1.0)), r"own: levels=.*ascending"),
        (lambda: Grid("own", 0, 1, levels=(-2.0, -1.0)), r"own: levels=.*above 0"),
        (lambda: Grid("own", 0, 10, has_zero_point=True), r"own: has_zero_point=True .*-8 to 7"),
        (
            lambda: Grid("own", 0, 2, levels=(-1.0, 0.5, 1.0), has_zero_point=True),
            r"own: has_zero_point=True .*levels",
        ),
        (lambda: Grid("own", -7, 7, granularity="row"), r"own: granularity='row' is not"),
        (lambda: Grid("own", -7, 7, granularity=0), r"own: granularity=0 is not"),
        (lambda: Grid(None, -7, 7), r"Grid: name=None is not a name"),
    ],
)
def test_a_grid_that_cannot_work_says_why(make, text):
    with pytest.raises(ValueRangeError, match=text):
        make()


def test_codebooks_take_arrays_and_reject_what_is_no_number():
    wanted = grids.codebook((-1.0, 0.0, 1.0))
    assert grids.codebook(np.linspace(-1, 1, 3)) == wanted
    assert grids.codebook(jnp.linspace(-1, 1, 3)) == wanted
    bad = ("a", "b"), (None, 1.0), (1j, 2.0), (False, True), (-1.0, np.inf), (0.0, 1.0, 1 + 1e-12)
    for levels in (*bad, "abc", 3, np.ones((2, 2))):
        with pytest.raises(ValueRangeError, match=r"levels=.* are not 2 to 256 ascending"):
            on_grid(grids.codebook(levels))


def test_long_codebooks_have_a_short_repr():
    assert len(repr(grids.codebook(np.linspace(-1, 1, 256)))) <= 100


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_a_fixed_range_stops_gradients_of_clipped_weights(scale):
    params = {"w": jnp.asarray([[0.1, -0.4, 3.0], [-5.0, 0.45, 0.5 * scale]])}
    got = gradient(on_grid("int8", range=ranges.fixed(scale / 127)), params)
    np.testing.assert_array_equal(got, (np.abs(params["w"]) <= scale).astype(np.float32))


def test_a_range_that_moves_clipped_weights_passes_their_gradient():
    params = {"w": jnp.asarray([[0.1, -5.0]])}
    np.testing.assert_array_equal(gradient(nnopt.quantization.binary_connect(), params), [[1, 1]])


@pytest.mark.parametrize("grid", ["nf4", "ternary", "int2"])
def test_powers_of_two_cover_the_largest_weight(grid):
    for largest in (1.0, 1.01, 1.99, 2.0, 3e-5):
        params = {"w": jnp.asarray([[largest, -0.3 * largest]])}
        tx = on_grid(grid, granularity="tensor", scale_dtype="e8m0")
        scale = float(nnopt.materialize(tx.pack(params, tx.init(params))["w"].scale).ravel()[0])
        assert scale == 2.0 ** np.ceil(np.log2(np.float32(largest)))


@pytest.mark.parametrize("grid", ["nf4", "int2", "fp4", "int8"])
@pytest.mark.parametrize("broken", [np.nan, np.inf, 3e38])
def test_a_block_with_a_broken_weight_has_a_finite_power_of_two(grid, broken):
    params = {"w": jnp.asarray([[broken, 0.5]], jnp.float32)}
    tx = on_grid(grid, granularity="tensor", scale_dtype="e8m0")
    encoded = tx.encode(params, tx.init(params))["w"]
    scale = np.asarray(nnopt.materialize(encoded.scale))
    assert np.isfinite(scale).all()
    assert (scale > 0).all()


def test_ranges_know_a_grid_by_its_values_and_not_by_its_name():
    mine = Grid("mine", -1, 1)
    for name in ("threshold", "two_sided"):
        got = values(on_grid(mine, range=name))
        np.testing.assert_array_equal(got, values(on_grid("ternary", range=name)))
        with pytest.raises(ValueRangeError, match=r"gives weights one of three values"):
            on_grid(Grid("ternary", -7, 7), range=name)
    with pytest.raises(ValueRangeError, match=r"belongs to the formats q4_0 and q8_0"):
        on_grid(Grid("q4_0", -7, 7), range="gguf")


@pytest.mark.parametrize("grid", ["int4", "nf4"])
def test_scales_that_overflow_raise_an_error_as_those_that_underflow(grid):
    params = {"w": PARAMS["w"] * 1e7}
    with pytest.raises(ScaleError, match=r"w: .* overflow in float16 \(greatest: 65,504\)"):
        on_grid(grid, group=8).init(params)
    got = values(on_grid(grid, group=8, scale_dtype="bfloat16"), params)
    assert np.abs(got).max() > 0.99 * np.abs(params["w"]).max()
    broken = {"w": PARAMS["w"].at[0, 0].set(jnp.inf)}
    on_grid(grid, group=8).init(broken)
