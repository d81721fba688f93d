"""Steps on packed leaves are computed where an array is needed, and not before."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P

import nnopt_jax as nnopt
from nnopt_jax.trace.primitives import named
from tests.trace.primitives.cases import ELEMENTWISE

KEY = jax.random.key(0)
INT8 = nnopt.quantization.uniform(8, granularity="tensor")
LORA = nnopt.chain(INT8, nnopt.transfer.lora(2))


def packed_of(tx=INT8, **shapes):
    params = {
        name: jax.random.normal(jax.random.fold_in(KEY, at), shape)
        for at, (name, shape) in enumerate(shapes.items())
    }
    return tx.pack(params, tx.init(params, key=KEY))


def check(apply, packed, *args, dense=()):
    """Run on packed parameters; say which primitives the leaves are materialized at."""
    run = nnopt.on_packed(apply)
    for function in (run, jax.jit(run)):
        found, wanted = function(packed, *args), apply(nnopt.materialize(packed), *args)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5), found, wanted)
    assert [use.primitive for use in run.report(packed, *args).materialized] == list(dense)


def test_a_function_of_a_weight_is_computed_at_the_product():
    packed = packed_of(w=(8, 4))
    x = jnp.ones((3, 8))
    check(lambda p, x: x @ jnp.tanh(p["w"]), packed, x, dense=["dot_general"])
    check(lambda p, x: x @ jnp.exp(2 - p["w"].T).T, packed, x, dense=["dot_general"])


def test_a_lookup_computes_the_rows_that_it_takes():
    packed = packed_of(table=(1000, 4))
    at = jnp.array([3, 998, 3])
    check(lambda p, at: jnp.tanh(p["table"])[at], packed, at)

    def take(packed, at):
        return nnopt.on_packed(lambda p, at: jnp.tanh(p["table"] + 1)[at])(packed, at)

    program = str(jax.make_jaxpr(take)(packed, at))
    assert "f32[1000,4]" not in program
    assert "f32[3,4]" in program


def test_layers_of_a_stack_are_computed_one_by_one():
    packed = packed_of(stack=(5, 8, 8))

    def apply(p, x):
        return lax.scan(lambda h, w: (jnp.sin(h @ w), None), x, jnp.tanh(p["stack"]) * 2)[0]

    x = jnp.ones((3, 8))
    check(apply, packed, x, dense=["dot_general"])
    program = str(jax.make_jaxpr(nnopt.on_packed(apply))(packed, x))
    assert "f32[5,8,8]" not in program


def test_what_a_loop_would_compute_at_every_turn_is_computed_once():
    packed = packed_of(w=(8, 8))

    def apply(p, x):
        w = jnp.tanh(p["w"])
        return lax.fori_loop(0, 3, lambda _, h: jnp.sin(h @ w), x)

    check(apply, packed, jnp.ones((3, 8)), dense=["scan"])


def test_sums_along_axes_and_changed_entries_wait_too():
    packed = packed_of(w=(8, 4), table=(100, 4))
    x = jnp.ones((3, 8))
    check(lambda p, x: x @ jnp.cumsum(jnp.exp(p["w"]), 0), packed, x, dense=["dot_general"])
    check(lambda p, x: x @ p["w"].at[0].set(0.0), packed, x, dense=["dot_general"])
    check(lambda p, x: x @ jnp.cumsum(p["w"], 0).T.T, packed, x, dense=["transpose"])

    def saved(p, x):
        return jnp.square(jax.checkpoint(lambda w, x: x @ w)(p["w"].at[0].set(0.0), x)).sum()

    check(saved, packed, x, dense=["dot_general"])
    grown = lambda p, x: x.at[0].set(p["w"][:, 0])  # noqa: E731 - an activation is changed
    check(grown, packed, x, dense=["scatter"])


def test_several_leaves_and_numbers():
    packed = packed_of(a=(8, 4), b=(8, 4))
    x = jnp.ones((3, 8))
    check(lambda p, x: x @ (p["a"] * p["b"] + 1), packed, x, dense=["dot_general"])
    report = nnopt.on_packed(lambda p, x: x @ (p["a"] * p["b"])).report(packed, x)
    assert report.materialized[0].path == "a and b"
    assert report.materialized[0].form == "Quantized"


def test_an_activation_is_not_held_back():
    """`x * scale` with a packed scale is an activation, which everything after it reads."""
    tx = nnopt.quantization.uniform(8, granularity="tensor", where="scale")
    packed = packed_of(tx, scale=(8,))
    check(lambda p, x: jnp.tanh(x * p["scale"][None]), packed, jnp.ones((3, 8)), dense=["mul"])


def test_a_filler_does_not_go_through_the_function():
    packed = packed_of(w=(8, 4))
    pad = lambda x: lax.pad(x, jnp.float32(0), ((0, 0, 0), (0, 2, 0)))  # noqa: E731
    check(lambda p, x: x @ pad(jnp.exp(p["w"])), packed, jnp.ones((3, 8)), dense=["pad"])


def test_what_is_returned_is_an_array():
    packed = packed_of(w=(8, 4))
    found = nnopt.on_packed(lambda p: jax.tree.map(lambda w: w.round(), p))(packed)
    assert isinstance(found["w"], jax.Array)
    check(lambda p: jnp.sin(p["w"]), packed, dense=["sin"])


def test_programs_inside_of_programs():
    packed = packed_of(w=(8, 4))

    def apply(p, x):
        w = jnp.tanh(p["w"])
        first = jax.checkpoint(lambda w, x: x @ w)(w, x)
        second = jax.jit(lambda w: w.T)(w).T
        return first + lax.cond(x.sum() > 0, lambda w: x @ w, lambda w: -x @ w, second)

    check(apply, packed, jnp.ones((3, 8)), dense=["dot_general"] * 2)


def test_gradients_of_inputs_and_of_adapters():
    packed = packed_of(LORA, w=(8, 4))
    x = jnp.arange(24.0).reshape(3, 8) / 24

    def loss(p, x):
        return (x @ jnp.tanh(p["w"]) ** 2).sum() + 0.1 * jnp.square(p["w"]).sum()

    def of_adapters(run):
        node = packed["w"]
        return jax.grad(lambda delta: run({"w": node.replace(delta=delta)}, x))(node.delta)

    found = of_adapters(nnopt.on_packed(loss))
    wanted = of_adapters(lambda p, x: loss(nnopt.materialize(p), x))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5), found, wanted)
    found = jax.grad(nnopt.on_packed(loss), 1)(packed, x)
    wanted = jax.grad(loss, 1)(nnopt.materialize(packed), x)
    np.testing.assert_allclose(found, wanted, 1e-5, 1e-5)


def test_a_penalty_reads_the_codes():
    """A sum over a weight of int8 stores no array of it; a product of factors has to."""
    packed = packed_of(w=(512, 256))
    check(lambda p: jnp.square(p["w"]).sum() + jnp.abs(p["w"]).max(), packed)
    run = jax.jit(nnopt.on_packed(lambda p: jnp.square(p["w"]).sum()))
    used = run.lower(packed).compile().memory_analysis()
    assert used.temp_size_in_bytes < 512 * 256
    low = packed_of(nnopt.compression.low_rank(2), w=(8, 4))
    check(lambda p: jnp.square(p["w"]).sum(), low, dense=["reduce_sum"])


@pytest.mark.parametrize("case", ELEMENTWISE, ids=lambda case: case.name)
def test_every_elementwise_primitive_waits(case):
    """Each of them, on a leaf in place of each of its arrays, and a slice of what comes out."""
    if not (primitives := named(case.name)):
        pytest.skip(f"this JAX has no {case.name}")
    arrays = [x for x in case.bases[0] if np.ndim(x)]
    if jax.eval_shape(case.function, *case.bases[0]).shape != arrays[0].shape:
        pytest.skip("gives an array of another shape")
    packed = packed_of(w=arrays[0].shape)

    def apply(p):
        weight = jnp.abs(p["w"]) * 0.9
        given = [weight.astype(x.dtype) if np.ndim(x) else x for x in case.bases[0]]
        return case.function(*given)[:, :1].astype(jnp.complex64)

    run = nnopt.on_packed(apply)
    uses = [use for use in run.report(packed).uses if use.primitive == primitives[0].name]
    assert uses
    assert not [use for use in uses if use.reason not in ("", "its outcome is returned")]
    found, wanted = jax.jit(lambda p: (run(p), apply(nnopt.materialize(p))))(packed)
    np.testing.assert_allclose(found, wanted, 1e-5, 1e-6)


def test_operands_that_broadcast_are_computed_before_they_are_moved():
    """JAX leaves axes of one entry as they are in `mul`; the outcome has more entries."""
    packed = packed_of(g=(1, 4), h=(3, 1))
    total = lambda p: jnp.broadcast_to(p["g"] + p["h"], (5, 3, 4)).sum()  # noqa: E731
    check(total, packed, dense=["broadcast_in_dim"])
    check(lambda p: (p["g"] * p["h"]).reshape(-1), packed, dense=["reshape"])
    packed = packed_of(w=(4, 6))
    check(lambda p: (p["w"] - p["w"][:, :1]).reshape(-1), packed, dense=["reshape"])


def test_narrow_floats_round():
    packed = packed_of(w=(8, 4))
    x = jnp.ones((3, 8))
    narrow = lambda w: w.astype(jnp.float8_e4m3fn).astype(jnp.float32)  # noqa: E731
    check(lambda p, x: x @ narrow(p["w"]), packed, x, dense=["dot_general"])


def test_lookups_of_windows():
    ids = jnp.array([1, 3])
    windows = lambda p, ids: jax.vmap(lambda i: lax.dynamic_slice(p["w"], (i, 0), (2, 6)))(ids)  # noqa: E731
    for granularity in ("tensor", "channel"):
        packed = packed_of(nnopt.quantization.uniform(8, granularity=granularity), w=(8, 12))
        check(lambda p, ids: p["w"][ids, 3:9], packed, ids)
        check(windows, packed, ids)
        check(lambda p, ids: jnp.exp(p["w"])[ids, :2], packed, ids)


def test_empty_slices():
    packed = packed_of(nnopt.quantization.uniform(8, granularity="channel", axis=0), w=(8, 4))
    found = nnopt.on_packed(lambda p: p["w"][3:3:2])(packed)
    assert found.shape == (0, 4)


def test_devices_exchange_arrays_whose_scales_differ():
    mesh = Mesh(np.array(jax.devices()[:4]), ("d",))
    packed = packed_of(nnopt.quantization.uniform(8, granularity="channel", axis=0), w=(4, 2))
    turn = lambda w: lax.ppermute(w, "d", [(i, (i + 1) % 4) for i in range(4)])  # noqa: E731
    whole = lambda w: lax.all_gather(w, "d")[0]  # noqa: E731
    for inner, out, name in ((turn, P("d"), "ppermute"), (whole, P(None), "all_gather")):
        cut = jax.shard_map(inner, mesh=mesh, in_specs=P("d"), out_specs=out, check_vma=False)
        check(lambda p, cut=cut: cut(p["w"]), packed, dense=[name])


def test_a_step_on_what_all_devices_share():
    mesh = Mesh(np.array(jax.devices()[:4]), ("d",))
    packed, x = packed_of(w=(8, 4)), jnp.arange(64.0).reshape(8, 8)
    cut = jax.shard_map(
        lambda w, y: y @ jnp.tanh(w), mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d")
    )
    check(lambda p, x: cut(p["w"], x), packed, x, dense=["dot_general"])
