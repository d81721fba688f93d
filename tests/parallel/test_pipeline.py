"""Pipelines give what the same blocks give one after another."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from nnopt_jax import parallel
from nnopt_jax.errors import CompositionError, ShapeError, ValueRangeError
from tests import tolerance
from tests.parallel import networks


def split_model(layers, stages, repeats):
    """The transformer, its blocks laid out for a pipeline, embedding and head apart."""
    model = dataclasses.replace(networks.MODEL, layers=layers)
    params = jax.jit(model.init)(jax.random.key(0))
    blocks = [params.pop(f"block_{i}") for i in range(layers)]
    stack = functools.partial(parallel.stack_stages, stages=stages, repeats=repeats)
    return model, params, blocks, stack


TENSOR = [
    (f"stages/{where}", (None, "stage", None, *spec))
    for where, spec in networks.MEGATRON[:5]
    for where in (where.removeprefix("**/"),)
]

CASES = {
    "dp2 x stage4": ({"data": 2, "stage": 4}, 4, 1, 4),
    "dp2 x stage4, twice round": ({"data": 2, "stage": 4}, 8, 2, 6),
    "dp2 x stage2 x tp2": ({"data": 2, "stage": 2, "model": 2}, 4, 1, 4),
    "stage4 x tp2": ({"stage": 4, "model": 2}, 4, 1, 4),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if "dp2" in name else ()) for name in CASES],
)
def test_gradients_are_those_of_blocks_one_after_another(name):
    axes, layers, repeats, microbatches = CASES[name]
    model, outer, blocks, stack = split_model(layers, axes["stage"], repeats)
    batch = networks.batch(rows=2 * microbatches)
    mesh = parallel.mesh(**axes)
    run = parallel.pipeline(model.block, mesh, microbatches=microbatches)

    def cross_entropy(params, h, batch):
        logits = model.head(params["outer"], h)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    def piped(params, batch):
        h = run(params["stages"], model.embed(params["outer"], batch["x"]))
        return cross_entropy(params, h, batch)

    def plain(params, batch):
        h = model.embed(params["outer"], batch["x"])
        h, _ = jax.lax.scan(lambda h, block: (model.block(block, h), None), h, params["blocks"])
        return cross_entropy(params, h, batch)

    params = {"outer": outer, "stages": stack(blocks)}
    tensor, shared = (TENSOR, "stage") if "model" in axes else ([], None)
    rules = [*tensor, ("stages/**", (None, "stage"))]
    plan = parallel.specs(params, mesh, rules, fsdp=shared, least=0)
    step = parallel.train_step(piped, networks.keep_gradients(), plan=plan)
    state, value = step(step.init(params), batch)
    in_order = {"outer": outer, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}
    both = jax.jit(jax.value_and_grad(plain))
    (wanted, slope), within = both(in_order, batch), tolerance.relative(both, in_order, batch)
    found = networks.gradients(state)
    kernel = found["stages"]["attention"]["query"]["kernel"]
    found["stages"] = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), found["stages"])
    np.testing.assert_allclose(value, wanted, rtol=within)
    assert networks.relative(found["outer"], slope["outer"]) < within
    assert networks.relative(found["stages"], slope["blocks"]) < within
    ways = axes["stage"] * axes.get("model", 1)
    assert kernel.addressable_shards[0].data.nbytes * ways == kernel.nbytes
    for leaf in jax.tree.leaves(state.params["outer"]):
        assert len(leaf.sharding.spec) == 0 or shared
        assert (
            leaf.addressable_shards[0].data.nbytes * (axes["stage"] if shared else 1) == leaf.nbytes
        )


def test_activations_may_be_a_tree():
    mesh = parallel.mesh(stage=8)
    staged = parallel.stack_stages([{"w": jnp.full(1, i + 1.0)} for i in range(8)], stages=8)

    def block(params, x):
        return {"h": x["h"] * params["w"], "steps": x["steps"] + 1}

    run = parallel.pipeline(block, mesh, microbatches=2)
    out = run(staged, {"h": jnp.ones(4), "steps": jnp.zeros(4, jnp.int32)})
    np.testing.assert_array_equal(out["h"], np.full(4, 40320.0))
    np.testing.assert_array_equal(out["steps"], np.full(4, 8))


def test_stacking_keeps_every_bit():
    blocks = [{"w": jnp.arange(3.0) + i, "b": jnp.int32(i)} for i in range(12)]
    again = parallel.unstack_stages(parallel.stack_stages(blocks, stages=2, repeats=3))
    jax.tree.map(np.testing.assert_array_equal, again, blocks)


def test_what_does_not_fit_is_told():
    mesh = parallel.mesh(data=2, stage=4)
    blocks = [{"w": jnp.ones(3)}] * 8
    with pytest.raises(ShapeError, match="8 blocks do not divide into 3 stages x 1 repeats"):
        parallel.stack_stages(blocks, stages=3)
    with pytest.raises(ShapeError, match="block 8: has other leaves, shapes or dtypes than"):
        parallel.stack_stages([*blocks, {"w": jnp.ones(2)}], stages=3)
    with pytest.raises(ShapeError, match="block 8: has other leaves, shapes or dtypes than"):
        parallel.stack_stages([*blocks, {"w": jnp.ones(3, jnp.bfloat16)}], stages=3)
    with pytest.raises(CompositionError, match="blocks are of type dict; give a list"):
        parallel.stack_stages({"w": jnp.ones(3)}, stages=3)
    with pytest.raises(ValueRangeError, match=r"microbatches=0 (.|\n)*axis='stages' is not one of"):
        parallel.pipeline(lambda p, x: x, mesh, microbatches=0, axis="stages")
    run = parallel.pipeline(lambda p, x: x, mesh, microbatches=2)
    with pytest.raises(ShapeError, match=r"w: begins with axes \(1, 2, 4\); wanted \(repeats, 4"):
        run(parallel.stack_stages(blocks, stages=2), jnp.ones(4))
    with pytest.raises(ShapeError, match="staged holds no leaf"):
        run({}, jnp.ones(4))
    with pytest.raises(ShapeError, match="6 rows do not divide into 4 shares"):
        run(parallel.stack_stages(blocks, stages=4), jnp.ones(6))
    with pytest.raises(ShapeError, match="2 micro-batches are fewer than the 4 stages"):
        run(parallel.stack_stages(blocks, stages=4, repeats=2), jnp.ones(4))


def test_bubbles():
    # Four stages, four micro-batches: seven ticks, of which each stage works four.
    assert parallel.bubble(stages=4, microbatches=4) == pytest.approx(3 / 7)
    with pytest.raises(ValueRangeError, match="microbatches=0"):
        parallel.bubble(1, 0)


def normed(params, h):
    """A block that has no slope at zero."""
    return 0.1 * params["s"][None] * h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True)) + h


@pytest.mark.parametrize(
    ("dtype", "repeats", "close"),
    [(jnp.float32, 1, 1e-5), (jnp.float32, 2, 1e-5), (jnp.bfloat16, 1, 5e-2)],
)
def test_what_is_computed_while_a_pipeline_fills_spoils_no_gradient(dtype, repeats, close):
    rng = np.random.default_rng(0)
    blocks = [{"s": jnp.asarray(rng.normal(size=3) + 2, dtype)} for _ in range(4 * repeats)]
    x = jnp.asarray(rng.normal(size=(8, 3)), dtype)
    mesh = parallel.mesh(data=2, stage=4)
    run = parallel.pipeline(normed, mesh, microbatches=4)

    def in_order(blocks, x):
        for block in blocks:
            x = normed(block, x)
        return jnp.square(x.astype(jnp.float32)).sum()

    def piped(staged, x):
        return jnp.square(run(staged, x).astype(jnp.float32)).sum()

    staged = parallel.stack_stages(blocks, stages=4, repeats=repeats)
    value, (slope, at_x) = jax.jit(jax.value_and_grad(piped, (0, 1)))(staged, x)
    wanted, (wanted_slope, wanted_at_x) = jax.value_and_grad(in_order, (0, 1))(blocks, x)
    np.testing.assert_allclose(value, wanted, rtol=close)
    for found, one in zip(parallel.unstack_stages(slope), wanted_slope, strict=True):
        assert networks.relative(found, one) < close
    assert networks.relative(at_x, wanted_at_x) < close


def test_explicit_axes_of_the_caller_will_do():
    mesh = jax.make_mesh((2, 4), ("data", "stage"), (AxisType.Explicit,) * 2)
    staged = parallel.stack_stages([{"s": jnp.full(3, 2.0)}] * 4, stages=4)
    run = parallel.pipeline(lambda params, x: x * params["s"][None], mesh, microbatches=2)
    x = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(run(staged, jnp.asarray(x)), 16 * x)
