"""What is counted is what arithmetic by hand gives."""

from __future__ import annotations

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import PartitionSpec

import nnopt_jax as nnopt
from nnopt_jax.errors import CompositionError
from nnopt_jax.trace.primitives import rule_of


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def cost_of(function, params, *args, latency=False, **kwargs):
    return nnopt.graph(function, params, *args, **kwargs).cost(params, latency=latency)


def rows(cost):
    return {row.path: row for row in cost.rows}


def macs(cost):
    return {row.path: row.macs for row in cost.rows if row.macs}


def test_a_layer_by_hand():
    params = {"bias": shape(7), "kernel": shape(5, 7)}
    cost = cost_of(lambda p, x: jnp.tanh(x @ p["kernel"] + p["bias"][None]), params, shape(3, 5))
    bias, kernel, rest = cost.rows
    assert [row.path for row in cost.rows] == ["bias", "kernel", "(elementwise)"]
    assert (kernel.macs, kernel.flops) == (3 * 5 * 7, 2 * 3 * 5 * 7)
    assert (kernel.parameters, kernel.bytes) == (35, 140)
    assert (kernel.bytes_read, kernel.bytes_written) == (4 * 3 * 5, 4 * 3 * 7)
    assert kernel.intensity == pytest.approx(210 / (140 + 60 + 84))
    assert (bias.flops, bias.bytes, bias.parameters) == (0, 28, 7)
    assert (rest.flops, rest.transcendentals, rest.macs) == (21, 21, 0)
    assert (cost.flops, cost.macs, cost.bytes, cost.parameters) == (231, 105, 168, 42)
    assert cost.share(kernel) == pytest.approx(100 * 210 / 231)


CONVOLUTIONS = {
    "plain": {"window_strides": (1, 1), "padding": "VALID"},
    "padded": {"window_strides": (1, 1), "padding": "SAME"},
    "strided": {"window_strides": (2, 3), "padding": "SAME"},
    "dilated": {"window_strides": (1, 1), "padding": "VALID", "rhs_dilation": (2, 1)},
    "grouped": {"window_strides": (1, 1), "padding": "VALID", "feature_group_count": 2},
    "depthwise": {"window_strides": (1, 2), "padding": "VALID", "feature_group_count": 6},
    "transposed": {"window_strides": (1, 1), "padding": ((2, 2), (1, 0)), "lhs_dilation": (2, 3)},
    "batches": {"window_strides": (1, 1), "padding": "VALID", "batch_group_count": 2},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_position_by_position(name):
    settings = CONVOLUTIONS[name]
    groups = settings.get("feature_group_count", 1)
    x, kernel = shape(4, 8, 9, 6), shape(3, 2, 6 // groups, 12)

    def apply(w, x):
        return lax.conv_general_dilated(
            x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **settings
        )

    program = jax.make_jaxpr(apply)(kernel, x)
    (equation,) = program.jaxpr.eqns
    batch, *places, outputs = program.jaxpr.outvars[0].aval.shape
    pads = equation.params["padding"]
    holes = settings.get("lhs_dilation", (1, 1))
    strides, apart = settings["window_strides"], settings.get("rhs_dilation", (1, 1))
    count = 0
    for at in itertools.product(*map(range, places)):
        for tap in itertools.product(range(3), range(2)):
            where = [at[i] * strides[i] + tap[i] * apart[i] - pads[i][0] for i in range(2)]
            count += all(where[i] % holes[i] == 0 for i in range(2))
    assert rule_of(equation).products == count * batch * outputs * (6 // groups)


def test_leaves_are_followed_through_movements():
    params = {"a": shape(4, 6), "b": shape(2, 3, 8), "c": shape(3, 8, 8)}

    def apply(p, x):
        x = x @ p["a"].T.astype(jnp.bfloat16).astype(x.dtype)  # (2, 4)
        x = x @ (2 * p["b"].reshape(6, 8)[1:5])  # (2, 8)
        return x @ jnp.concatenate([p["c"][1], jnp.ones((8, 8))], 1)

    cost = cost_of(apply, params, shape(2, 6))
    assert macs(cost) == {"a": 2 * 6 * 4, "b": 2 * 4 * 8, "c": 2 * 8 * 16}
    # Casts and factors on the way are work for the leaf.
    assert rows(cost)["a"].flops == 2 * 48 + 2 * 24
    assert rows(cost)["b"].flops == 2 * 64 + 32


def test_attention_scores_are_of_activations():
    b, t, d = 2, 5, 8

    def apply(p, x):
        q, k, v = (x @ p[name] for name in "qkv")
        scores = jnp.einsum("btd,bsd->bts", q, k)
        return jnp.einsum("bts,bsd->btd", jax.nn.softmax(scores), v) @ p["o"]

    cost = cost_of(apply, {name: shape(d, d) for name in "qkvo"}, shape(b, t, d))
    assert macs(cost) == dict.fromkeys("koqv", b * t * d * d) | {"(activations)": 2 * b * t * t * d}
    # softmax: the maximum (and a guard against -inf), differences, sums, quotients
    assert rows(cost)["(elementwise)"].transcendentals == b * t * t


def test_lookups_move_bytes_and_compute_nothing():
    def apply(p, tokens):
        h = p["table"][tokens]
        return (h @ p["up"]) @ p["table"].T

    params = {"table": shape(50, 8), "up": shape(8, 8)}
    tokens = shape(3, 4, dtype="int32")
    by = rows(cost_of(apply, params, tokens))
    assert by["table"].macs == 12 * 8 * 50  # of the tied head alone
    assert by["up"].macs == 12 * 8 * 8
    assert by["table"].bytes_written == 4 * 12 * 8 + 4 * 12 * 50
    (only,) = cost_of(lambda p, i: jnp.take(p, i, 0, mode="clip"), shape(50, 8), tokens).rows[:1]
    assert (only.macs, only.flops, only.bytes_written) == (0, 0, 4 * 12 * 8)


def test_experts_that_tokens_choose_are_still_leaves():
    def apply(p, x, which):
        return jnp.einsum("td,tdf->tf", x, p["experts"][which])

    cost = cost_of(apply, {"experts": shape(4, 8, 6)}, shape(5, 8), shape(5, dtype="int32"))
    assert macs(cost) == {"experts": 5 * 8 * 6}
    ragged = cost_of(
        lambda p, x, sizes: lax.ragged_dot(x, p, sizes),
        shape(4, 8, 6), shape(5, 8), shape(4, dtype="int32"),
    )  # fmt: skip
    assert ragged.macs == 5 * 8 * 6


def test_inner_programs():
    d = 8
    once = 3 * d * d
    w, x = shape(d, d), shape(3, d)
    step = jax.custom_vjp(lambda w, x: x @ w)
    step.defvjp(lambda w, x: (x @ w, None), lambda _, slope: (slope, slope))
    clipped = jax.custom_jvp(lambda x, w: x @ w)
    clipped.defjvps(None, None)
    stack = shape(4, d, d)
    cases = {
        "jit": (jax.jit(lambda w, x: x @ w), w, 1),
        "remat": (jax.checkpoint(lambda w, x: x @ w), w, 1),
        "custom_vjp": (step, w, 1),
        "custom_jvp": (lambda w, x: clipped(x, w), w, 1),
        "vmap": (lambda w, x: jax.vmap(lambda row: w.T @ row)(x), w, 1),
        "scan": (lambda w, x: lax.scan(lambda c, v: (c @ v, None), x, w)[0], stack, 4),
        "closure": (lambda w, x: lax.fori_loop(0, 5, lambda _, c: c @ w, x), w, 5),
        "indexed": (lambda w, x: lax.fori_loop(0, 4, lambda i, c: c @ w[i], x), stack, 4),
        "nested": (
            lambda w, x: lax.fori_loop(
                0, 3, lambda _, c: lax.scan(lambda c, v: (c @ v, None), c, w)[0], x
            ),
            stack,
            12,
        ),
        "shard_map": (
            jax.shard_map(
                lambda w, x: x @ w,
                mesh=jax.make_mesh((4,), ("m",), axis_types=(jax.sharding.AxisType.Auto,)),
                in_specs=(PartitionSpec(None, "m"), PartitionSpec()),
                out_specs=PartitionSpec(None, "m"),
            ),
            w,
            1,
        ),
        "gradient": (jax.grad(lambda w, x: (x @ w).sum()), w, 0),
    }
    for name, (function, leaf, times) in cases.items():
        cost = cost_of(function, leaf, x)
        assert cost.rows[0].macs == times * once, name
        assert not cost.notes, name
        if name == "gradient":  # the product forward is for nothing; the other has no leaf in it
            assert macs(cost) == {"(activations)": once}


def test_what_cannot_be_known_is_said():
    w, x = shape(8, 8), shape(3, 8)

    def repeated(w, x):
        return lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ w, x)

    cost = cost_of(repeated, w, x)
    assert cost.macs == 3 * 64
    assert "while" in cost.notes[0]
    assert cost.notes[0] in str(cost)

    def either(w, x):
        return lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    cost = cost_of(either, w, x)
    assert cost.macs == 2 * 3 * 64
    assert "most expensive" in cost.notes[0]
    same = cost_of(lambda w, x: lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w.T), w, x)
    assert (same.macs, same.notes) == (3 * 64, ())
    assert cost_of(lambda w: jnp.sort(w), w).notes == ("not counted: sort",)


def test_what_nothing_depends_on_is_free():
    def apply(w, x):
        @jax.jit
        def both(w, x):
            return x @ w, x @ w @ w

        def step(carry, _):
            kept, lost = carry
            return (kept @ w, lost @ w @ w), None

        (kept, _), _ = lax.scan(step, (x, x), None, length=2)
        return both(w, x)[0] + kept

    assert cost_of(apply, shape(8, 8), shape(3, 8)).macs == 3 * 3 * 64


def test_of_two_leaves_the_larger_counts():
    params = {"a": shape(8, 2), "b": shape(2, 8), "w": shape(8, 8)}
    cost = cost_of(lambda p, x: x @ (p["w"] + p["a"] @ p["b"]), params, shape(3, 8))
    assert macs(cost) == {"a": 8 * 2 * 8, "w": 3 * 64}


def test_a_module_with_state_and_keywords():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, *, train, name):
            assert name == "relu"
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x))
            return nn.relu(x)

    x = jnp.ones((4, 8))
    init = functools.partial(Block().init, train=False, name="relu")
    variables = jax.eval_shape(init, jax.random.key(0), x)
    cost = cost_of(Block().apply, variables, x, train=False, name="relu")
    by = rows(cost)
    assert by["params/Dense_0/kernel"].macs == 4 * 8 * 6
    assert by["batch_stats/BatchNorm_0/mean"].bytes == 24
    assert cost.parameters == 8 * 6 + 6 + 4 * 6


def test_numbers_for_json_and_for_people():
    cost = cost_of(lambda w, x: x @ w, shape(1000, 1000), shape(2, 1000))
    told = json.loads(json.dumps(cost.asdict(), allow_nan=False))
    assert told["total"]["flops"] == 4_000_000
    assert told["rows"][0]["share"] == 100.0
    assert "4.00 M" in str(cost)
    assert len({len(line) for line in str(cost).splitlines()}) == 1  # columns line up
    smaller = cost_of(lambda w, x: x[:, :500] @ w, shape(500, 1000), shape(2, 1000))
    ratios = cost.against(smaller)
    assert (ratios.flops, ratios.bytes, ratios.latency) == (2.0, 2.0, None)
    assert "4.00 M -> 2.00 M (2.00x)" in str(ratios)
    json.dumps(ratios.asdict(), allow_nan=False)


def test_latency_is_of_the_real_thing():
    w, x = jnp.ones((8, 8)), np.ones((3, 8), np.float32)
    cost = cost_of(lambda w, x: x @ w, w, x, latency=True)
    assert 0 < cost.latency < 1000
    assert str(cost).splitlines()[0].endswith("ms")
    assert cost.against(cost).latency == 1.0
    zeros = cost_of(lambda w, x: x @ w, shape(8, 8), shape(3, 8), latency=True)
    assert 0 < zeros.latency < 1000  # shapes are timed on zeros
    with pytest.raises(CompositionError, match="int is not a function"):
        cost_of(3, w)
