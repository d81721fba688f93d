"""Products by lists of sparse weights are those of the arrays they stand for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.arrays import (
    ELL,
    BlockELL,
    Codebook,
    InputQuantized,
    Masked,
    Reshaped,
)

drawn = np.random.default_rng(0)
W = drawn.normal(size=(64, 32)).astype(np.float32)
SINGLE = drawn.random((64, 32)) < 0.1
SINGLE[:, 3], SINGLE[:, 4] = False, True
BLOCKS = np.kron(drawn.random((16, 4)) < 0.3, np.ones((4, 8), bool)).astype(bool)
LISTS = {
    "single": lambda dtype: ELL.of(jnp.asarray(W, dtype), SINGLE),
    "blocks": lambda dtype: BlockELL.of(jnp.asarray(W, dtype), (4, 8), BLOCKS),
}
EACH = pytest.mark.parametrize("name", LISTS)
RUN = nnopt.on_packed(lambda p, x: x @ p["w"], strict=True)


def lists(name, dtype="float32"):
    node = LISTS[name](dtype)
    return {"w": node}, np.asarray(node.materialize(), np.float64)


def rows(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def close(found, wanted, most=1e-6):
    scale = np.abs(np.asarray(wanted)).max()
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=0, atol=most * scale)


@EACH
@pytest.mark.parametrize("shape", [(64,), (1, 64), (8, 64), (32, 64), (2, 3, 64), (0, 64)])
def test_products_of_any_rows(name, shape):
    packed, dense = lists(name)
    x = rows(*shape)
    if not x.size:
        run = nnopt.on_packed(lambda p, x: x @ p["w"])
        assert run(packed, x).shape == (0, 32)
        return
    close(jax.jit(RUN)(packed, x), np.asarray(x, np.float64) @ dense)
    assert not RUN.report(packed, x).materialized


@EACH
def test_axes_of_the_array_lie_anyhow(name):
    packed, dense = lists(name)
    x = rows(5, 64, 3)
    run = nnopt.on_packed(lambda p, x: jnp.einsum("bik,io->bko", x, p["w"]), strict=True)
    close(run(packed, x), np.einsum("bik,io->bko", np.asarray(x, np.float64), dense))
    run = nnopt.on_packed(lambda p, x: jnp.einsum("io,bik->obk", p["w"], x), strict=True)
    close(run(packed, x), np.einsum("bik,io->obk", np.asarray(x, np.float64), dense))


@EACH
def test_sums_are_wide_and_rounded_once(name):
    packed, dense = lists(name, "bfloat16")
    x = rows(8, 64).astype(jnp.bfloat16)
    found = jax.jit(RUN)(packed, x)
    assert found.dtype == jnp.bfloat16
    wanted = np.asarray(x, np.float64) @ dense
    close(found, wanted, 2.0**-8)
    wide = nnopt.on_packed(
        lambda p, x: jax.lax.dot(x, p["w"], preferred_element_type=jnp.float32), strict=True
    )
    assert wide(packed, x).dtype == jnp.float32
    close(wide(packed, x), wanted)


@EACH
def test_gradients_reach_the_array_and_the_values(name):
    packed, dense = lists(name)
    x, out = rows(4, 64), rows(4, 32)

    def loss(x, values):
        return (RUN({"w": packed["w"].replace(values=values)}, x) * out).sum()

    by_x, by_values = jax.jit(jax.grad(loss, (0, 1)))(x, packed["w"].values)
    close(by_x, np.asarray(out, np.float64) @ dense.T)
    whole = np.asarray(x, np.float64).T @ np.asarray(out, np.float64)
    there = packed["w"].replace(values=by_values).materialize()
    close(there, np.where(np.asarray(there) != 0, whole, 0))
    assert by_values.shape == packed["w"].values.shape
    slope = jax.jvp(lambda x: RUN(packed, x), (x,), (jnp.ones_like(x),))[1]
    close(slope, np.ones((4, 64)) @ dense)


@EACH
def test_vmap_over_examples_and_over_members(name):
    packed, dense = lists(name)
    x = rows(6, 64)
    wanted = np.asarray(x, np.float64) @ dense
    close(jax.jit(jax.vmap(RUN, (None, 0)))(packed, x), wanted)
    both = jax.tree.map(lambda a: jnp.stack([a, a]), packed)
    close(jax.jit(jax.vmap(RUN, (0, None)))(both, x)[1], wanted)
    slopes = jax.vmap(jax.grad(lambda x: RUN(packed, x).sum()))(x)
    close(slopes, np.ones((6, 32)) @ dense.T)


@EACH
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_an_input_that_no_output_lists_reaches_none(name, odd):
    packed, dense = lists(name)
    listed = np.zeros_like(dense, bool)
    ones = packed["w"].replace(values=jnp.ones_like(packed["w"].values))
    listed[np.asarray(ones.materialize()) != 0] = True
    x = rows(2, 64).at[:, 7].set(odd)
    found = np.asarray(RUN(packed, x))
    np.testing.assert_array_equal(~np.isfinite(found[0]), listed[7])


@pytest.mark.parametrize("odd", [np.nan, np.inf])
@pytest.mark.parametrize("form", ["masked", "stored"])
def test_elsewhere_a_pruned_weight_is_a_zero(form, odd):
    """IEEE's `0 * inf` is NaN, and each product sums one for the outputs that drop the input."""
    node = Masked(jnp.asarray(W), jnp.asarray(SINGLE))
    node = node.store() if form == "stored" else node
    x = rows(2, 64).at[:, 7].set(odd)
    found = nnopt.on_packed(lambda p, x: x @ p["w"])({"w": node}, x)
    np.testing.assert_array_equal(np.isnan(found[0]), ~SINGLE[7] | np.isnan(odd))


@EACH
def test_lists_are_moved_scaled_and_cast(name):
    packed, dense = lists(name)
    x = rows(4, 64)
    wanted = np.asarray(x, np.float64) @ dense
    run = nnopt.on_packed(lambda p, x: x @ p["w"].T.T, strict=True)
    close(run(packed, x), wanted)
    run = nnopt.on_packed(lambda p, x: (p["w"].T @ x.T).T, strict=True)
    close(run(packed, x), wanted)
    run = nnopt.on_packed(lambda p, x: x @ (2 * p["w"]), strict=True)
    close(run(packed, x), 2 * wanted)
    run = nnopt.on_packed(lambda p, x: x @ p["w"].astype(jnp.bfloat16), strict=True)
    close(run(packed, x.astype(jnp.bfloat16)), wanted, 0.02)


@EACH
def test_the_other_axis_makes_them_dense_and_says_why(name):
    packed, dense = lists(name)
    x = rows(4, 32)
    run = nnopt.on_packed(lambda p, x: x @ p["w"].T)
    close(jax.jit(run)(packed, x), np.asarray(x, np.float64) @ dense.T)
    (use,) = run.report(packed, x).materialized
    assert use.reason == "it is prepacked for sums over its first axis"


@EACH
def test_inputs_are_rounded_first(name):
    packed, dense = lists(name)
    x = rows(4, 64)
    inputs = {"w": InputQuantized(packed["w"])}
    scale = np.abs(np.asarray(x)).max(1, keepdims=True) / 127
    close(RUN(inputs, x), np.rint(np.asarray(x) / scale) * scale @ dense, 1e-5)


def test_rows_that_are_split_over_devices():
    packed, dense = lists("single")
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    x = jax.device_put(rows(16, 64), spec)
    close(jax.jit(RUN)(packed, x), np.asarray(x, np.float64) @ dense)


def test_tables_run_on_lists_and_as_arrays():
    table = Codebook(jnp.abs(jnp.round(jnp.asarray(W))).astype(jnp.uint8), jnp.arange(4.0))
    packed = {"w": Masked(table, jnp.asarray(SINGLE & (np.arange(32) != 4))).store()}
    prepacked = nnopt.prepack(packed)
    assert isinstance(prepacked["w"], ELL)
    x = rows(3, 64)
    close(RUN(prepacked, x), np.asarray(x) @ np.asarray(nnopt.materialize(packed)["w"]))
    arrays = nnopt.prepack(packed, dense=True)
    assert isinstance(arrays["w"], Reshaped)
    close(RUN(arrays, x), RUN(prepacked, x))
