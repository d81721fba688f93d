"""The zoo: models of every library under one contract."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import nnopt_jax as nnopt
from tests.trace import golden
from tests.trace.zoo.case import half_of, pack
from tests.trace.zoo.models import MODELS


def packed_case(name):
    case = MODELS[name]()
    return case, jax.jit(pack)(case.params)


def close(found, wanted, most):
    """The greatest magnitude is that of all arrays: some slopes are sums that cancel to zero."""
    pairs = [
        (np.asarray(one, np.float64), np.asarray(other, np.float64))
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
        if one.dtype != jax.dtypes.float0
    ]
    scale = max(np.abs(other).max(initial=0.0) for _, other in pairs)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=0, atol=most * max(1e-6, scale))


def loss_of(function):
    """A scalar of all that comes out, for gradients."""

    def loss(params, *args):
        out = jax.tree.leaves(function(params, *args))
        return sum((jnp.sin(x.astype(jnp.float32)) ** 2).sum() for x in out)

    return loss


def test_there_are_thirty_and_more():
    assert len(MODELS) >= 30


EVERYDAY = (
    "linen_conv", "linen_tied_embed", "linen_scan", "linen_lstm", "linen_bfloat16",
    "nnx_transformer", "equinox_mlp", "haiku_mlp", "programs", "shard_map", "llama", "experts",
)  # fmt: skip
"""One of each kind; compiling takes its time. What becomes of leaves is compared for all."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in EVERYDAY else pytest.mark.slow) for n in MODELS]
)
def test_packed_is_what_dense_is(name):
    case, packed = packed_case(name)

    @jax.jit
    def both(packed, *args):
        return nnopt.on_packed(case.apply)(packed, *args), case.apply(
            nnopt.materialize(packed), *args
        )

    close(*both(packed, *case.args), case.most)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_made_dense_is_written_down(name):
    case = MODELS[name]()
    packed = jax.eval_shape(pack, case.params)
    report = nnopt.on_packed(case.apply).report(packed, *case.args)
    assert golden.told(report) == (golden.FOLDER / f"{name}.txt").read_text()
    assert any(not use.reason for use in report.uses)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in MODELS if n != "decoding"])
def test_gradients_are_those_of_dense(name):
    """Of activations and of the float parts of nodes: scales, biases."""
    case, packed = packed_case(name)
    run = nnopt.on_packed(case.apply)

    @jax.jit
    def both(packed, *args):
        floats = [at for at, x in enumerate(args) if jnp.issubdtype(x.dtype, jnp.floating)]
        wanted = (0, *(1 + at for at in floats))
        return tuple(
            jax.grad(loss_of(function), wanted, allow_int=True)(packed, *args)
            for function in (run, lambda p, *a: case.apply(nnopt.materialize(p), *a))
        )

    close(*both(packed, *case.args), 10 * case.most)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in MODELS if n != "shard_map"])
def test_members_are_mapped_over(name):
    """Two sets of packed parameters, and two batches."""
    case, packed = packed_case(name)
    twice = jax.tree.map(lambda x: jnp.stack([x, x[::-1] if x.ndim == 1 else x]), packed)
    args = [jnp.stack([x, x[::-1]]) for x in case.args]

    @jax.jit
    def both(packed, *args):
        dense = jax.vmap(nnopt.materialize)(packed)
        return jax.vmap(nnopt.on_packed(case.apply))(packed, *args), jax.vmap(case.apply)(
            dense, *args
        )

    close(*both(twice, *args), case.most)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("name", [n for n in MODELS if n != "shard_map"])
def test_a_mesh_changes_nothing_and_gathers_no_codes(name, kind):
    case, packed = packed_case(name)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(getattr(AxisType, kind),) * 2)

    def place(x, spec):
        return jax.device_put(x, NamedSharding(mesh, spec))

    def split(x):
        """The last axis over the devices of the model, where they divide it."""
        axes = [None] * x.ndim
        if x.ndim > 1 and x.shape[-1] % 2 == 0:
            axes[-1] = "model"
        return place(x, P(*axes))

    spread = jax.tree.map(split, packed)
    args = [place(x, P("data") if case.batched and not x.shape[0] % 2 else P()) for x in case.args]
    run = nnopt.on_packed(case.apply)
    if kind == "Explicit":
        run = jax.sharding.auto_axes(run, out_sharding=P())
    with jax.set_mesh(mesh):
        compiled = jax.jit(run).lower(spread, *args).compile()
        found = compiled(spread, *args)
    wanted = jax.jit(case.apply)(nnopt.materialize(packed), *case.args)
    close(found, wanted, 2 * case.most)
    gathered = re.findall(r"= [su]8\[[\d,]*\]\S* all-gather", compiled.as_text())
    assert not gathered


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in ("llama", "decoding", "linen_lstm") else pytest.mark.slow)
        for n in MODELS
    ],
)
def test_without_half_of_all_units_it_is_as_with_zeros_there(name):
    case = MODELS[name]()
    params = jax.tree.map(jnp.asarray, case.params)
    graph = nnopt.graph(case.apply, params, *case.args)
    keep = half_of(graph.coupled)

    @jax.jit
    def both(params, *args):
        small = graph.shrink(params, keep)
        return small.apply(small.params, *args), case.apply(graph.mask(params, keep), *args)

    close(*both(params, *case.args), 1e-6 if case.most == 1e-5 else case.most)
