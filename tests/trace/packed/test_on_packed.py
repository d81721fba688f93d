"""Functions of packed leaves give what they give of the arrays those stand for."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

import nnopt_jax as nnopt
from nnopt_jax.errors import CompositionError
from nnopt_jax.zoo.transformer import Transformer

KEY = jax.random.key(0)


def drawn(*shape):
    return jax.random.normal(jax.random.fold_in(KEY, sum(shape)), shape)


def packed_by(tx, params):
    return tx.pack(params, tx.init(params, key=KEY))


INT8 = nnopt.quantization.uniform(8)
KINDS = {
    "int8": INT8,
    "int4": nnopt.quantization.uniform(4),
    "per tensor": nnopt.quantization.uniform(8, granularity="tensor"),
    "uint8": nnopt.quantization.uniform(8, symmetric=False),
    "codebook": nnopt.compression.codebook(8),
    "low rank": nnopt.compression.low_rank(2),
    "pruned": nnopt.pruning.magnitude(0.5),
    "adapters": nnopt.chain(INT8, nnopt.transfer.lora(2)),
}


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
        x = nn.relu(nn.ConvTranspose(4, (2, 2))(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(16, 8)
        x = nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(embed(tokens)))
        return embed.attend(x)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, carry, _):
        return carry + nn.Dense(8)(nn.relu(nn.Dense(16)(carry))), None


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x):
        x, _ = nn.scan(
            nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )()(x, None)
        return nn.Dense(4)(x)


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.LSTMCell(8))(x)[:, -1])


def linen(module, *args):
    params = module.init(KEY, *args)
    return module.apply, params, args


def of_nnx():
    model = nnx.Sequential(nnx.Linear(8, 16, rngs=nnx.Rngs(0)), nnx.relu,
                           nnx.Linear(16, 4, rngs=nnx.Rngs(1)))  # fmt: skip
    graph, state = nnx.split(model)
    return (lambda state, x: nnx.merge(graph, state)(x)), nnx.to_pure_dict(state), (drawn(5, 8),)


def plain():
    """Operators, three operands, transposes, inner programs, closures of control flow."""
    params = {"a": drawn(8, 8), "b": drawn(8, 6), "c": drawn(6, 8), "e": drawn(16, 8)}

    @jax.jit
    def inner(w, x):
        return jnp.tensordot(x, w, 1)

    def apply(params, x):
        x = x @ params["a"] + inner(params["a"].T, x)  # square, either way
        x = jnp.einsum("bi,ij,jk->bk", x, params["b"], params["c"])
        x = jax.lax.cond(x.sum() > 0, lambda x: x @ params["a"], lambda x: x - 1.0, x)
        x = jax.lax.fori_loop(0, 2, lambda _, x: jnp.tanh(x @ params["a"]), x)
        x = jax.checkpoint(lambda w, x: jnp.sin(x @ w))(params["b"], x) @ params["c"]
        x = x + (params["e"][3] + params["a"][1:5].sum(0) * 2.0)[None]
        return jax.vmap(lambda x: params["a"] @ x)(x)

    return apply, params, (drawn(5, 8),)


def transformer():
    model = Transformer(inputs=16, classes=4, width=8, heads=2, hidden=16, layers=2, length=6)
    return model, model.init(KEY), (jnp.arange(12).reshape(2, 6) % 16,)


ZOO = {
    "convolutions": functools.partial(linen, Convolutions(), drawn(2, 8, 8, 1)),
    "tied": functools.partial(linen, Tied(), jnp.arange(10).reshape(2, 5) % 16),
    "stacked": functools.partial(linen, Stacked(), drawn(4, 8)),
    "recurrent": functools.partial(linen, Recurrent(), drawn(2, 5, 8)),
    "nnx": of_nnx,
    "plain": plain,
    "transformer": transformer,
}


def close(found, wanted, most=1e-5):
    scale = np.abs(np.asarray(wanted)).max()
    np.testing.assert_allclose(found, wanted, atol=most * scale, rtol=0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(
            name,
            kind,
            marks=() if kind in ("int8", "adapters") or name == "plain" else pytest.mark.slow,
        )
        for name in ZOO
        for kind in KINDS
    ],
)
def test_packed_is_what_dense_is(name, kind):
    apply, params, args = ZOO[name]()
    packed = packed_by(KINDS[kind], params)
    wanted = jax.jit(apply)(nnopt.materialize(packed), *args)
    close(jax.jit(nnopt.on_packed(apply))(packed, *args), wanted)


@pytest.mark.parametrize("name", ZOO)
def test_what_is_made_dense_is_known(name):
    apply, params, args = ZOO[name]()
    report = nnopt.on_packed(apply).report(packed_by(INT8, params), *args)
    assert {use.primitive for use in report.dense} == DENSE[name]


DENSE = {
    "convolutions": set(),
    "tied": {"add"},  # biases of heads are matrices, and packed
    "stacked": {"add"},  # biases of layers in one stack, too
    "recurrent": set(),
    "nnx": set(),
    "plain": {"add", "reduce_sum"},  # rows that are cut out and summed
    "transformer": {"add"},  # positions
}
"""What meets a leaf of eight bits that has a scale for each column, and makes it dense."""


def test_untouched_and_moved_leaves_come_back_packed():
    packed = packed_by(INT8, {"w": drawn(8, 4)})
    same, turned = nnopt.on_packed(lambda p: (p["w"], p["w"].T))(packed)
    assert isinstance(same, nnopt.arrays.Quantized)
    assert same.codes.dtype == turned.codes.dtype == jnp.int8
    np.testing.assert_array_equal(turned.materialize(), packed["w"].materialize().T)


def test_arguments_that_are_no_arrays_reach_the_function():
    def apply(params, x, *, train, name):
        assert train is True
        assert name == "relu"
        return getattr(jax.nn, name)(x @ params["w"])

    packed = packed_by(INT8, {"w": drawn(8, 4)})
    x = drawn(3, 8)
    found = nnopt.on_packed(apply)(packed, x, train=True, name="relu")
    close(found, jax.nn.relu(x @ packed["w"].materialize()))


def test_rules_of_derivatives_are_kept():
    @jax.custom_vjp
    def clipped(w, x):
        return x @ w

    clipped.defvjp(
        lambda w, x: (x @ w, w), lambda w, slope: (jnp.zeros_like(w), jnp.ones((3, 8)) * 7.0)
    )
    packed, x = packed_by(INT8, {"w": drawn(8, 4)}), drawn(3, 8)
    run = nnopt.on_packed(lambda p, x: clipped(p["w"], x))
    close(run(packed, x), x @ packed["w"].materialize())
    np.testing.assert_array_equal(jax.grad(lambda x: run(packed, x).sum())(x), np.full((3, 8), 7.0))
    assert not run.report(packed, x).dense


def test_gradients_reach_activations_and_float_parts():
    packed = packed_by(KINDS["adapters"], {"w": drawn(8, 4)})
    x = drawn(3, 8)

    def loss(run):
        return jax.grad(lambda p, x: jnp.square(run(p, x)).sum(), (0, 1), allow_int=True)

    def apply(p, x):
        return jnp.tanh(x @ p["w"])

    found = jax.jit(loss(nnopt.on_packed(apply)))(packed, x)
    wanted = jax.jit(loss(lambda p, x: apply(nnopt.materialize(p), x)))(packed, x)
    compared = 0
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        if a.dtype != jax.dtypes.float0:
            close(a, b)
            compared += 1
    assert compared == 4  # the scale, two factors, the activations


def test_one_compiled_function_is_traced_once():
    traces = []

    def apply(p, x):
        traces.append(1)
        return x @ p["w"]

    run = jax.jit(nnopt.on_packed(apply))
    packed = packed_by(INT8, {"w": drawn(8, 4)})
    for _ in range(3):
        run(packed, drawn(3, 8))
    assert len(traces) == 1


def test_members_are_mapped_over():
    members = jax.vmap(lambda w: packed_by(INT8, {"w": w}))(drawn(3, 8, 4))
    x = drawn(5, 8)
    found = jax.vmap(nnopt.on_packed(lambda p, x: x @ p["w"]), (0, None))(members, x)
    dense = jax.vmap(nnopt.materialize)(members)["w"]
    close(found, jnp.einsum("bi,mij->mbj", x, dense))


def test_rows_beyond_the_end_are_as_without_packing():
    packed = packed_by(INT8, {"w": drawn(8, 4)})

    def apply(p, at):
        return jnp.take(p["w"], at, axis=0), jnp.take(p["w"], at, axis=0, mode="clip")

    at = jnp.array([[0, 7], [8, -9]])
    found = nnopt.on_packed(apply)(packed, at)
    for one, wanted in zip(found, apply(nnopt.materialize(packed), at), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-6)


def test_strict_names_leaf_primitive_and_line():
    packed = packed_by(INT8, {"deep": {"w": drawn(8, 4)}})
    run = nnopt.on_packed(lambda p: jnp.sin(p["deep"]["w"]), strict=True)
    text = r"deep/w: Quantized meets sin at test_on_packed\.py:\d+ \(.*\): no rule for sin"
    with pytest.raises(CompositionError, match=text):
        run(packed)
    with pytest.raises(CompositionError, match="3 is no function"):
        nnopt.on_packed(3)
