"""Axes of weights, derived by hand from what the functions compute."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import nnopt_jax as nnopt
from nnopt_jax import Axes
from tests.trace.roles import HEADS_IN, HEADS_OUT, HWIO, IN_OUT, LAYERS, LOOKED_UP, OIHW, OUT_IN


def shaped(shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def axes_of(function, weight, *inputs):
    """The table of a function of one leaf, and of inputs of these shapes."""
    given = [shaped(x) if isinstance(x, tuple) else x for x in inputs]
    return nnopt.graph(lambda p, *args: function(p["w"], *args), {"w": shaped(weight)}, *given).axes


def conv(numbers, **settings):
    def apply(w, x):
        rank = w.ndim - 2
        return lax.conv_general_dilated(
            x, w, (1,) * rank, [(1, 1)] * rank, dimension_numbers=numbers, **settings
        )

    return apply


def looped(w, x):
    return lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ w[i]), x)


def nested(w, x):
    def inner(x, w):
        return x @ w, None

    return lax.scan(lambda x, w: (lax.scan(inner, x, w)[0], None), x, w)[0]


def along_the_second(w, x):
    return lax.scan(lambda x, w: (x @ w, None), x, jnp.moveaxis(w, 1, 0))[0]


def ragged(w, x, sizes):
    return lax.ragged_dot(x, w, sizes)


def cut(w, x):
    left, right = jnp.split(w, 2, axis=1)
    return jax.nn.silu(x @ left) * (x @ right)


def dropped(w, x, key):
    """A mask that differs in each step lies on the weight itself."""
    kept = jax.random.bernoulli(key, 0.5, w.shape)
    return x @ jnp.where(kept, w / 0.5, 0).T.T


def looked_up(w, tokens):
    return jnp.take(w, tokens, axis=1)


INTS = shaped((7,), "int32")

# The function, the shape of the weight, its inputs, and its axes.
CASES = {
    "out in": (lambda w, x: x @ w.T, (4, 8), [(5, 8)], OUT_IN),
    "four axes": (
        lambda w, x: jnp.einsum("bijk,kjio->bo", x, w), (4, 3, 2, 6), [(5, 2, 3, 4)],
        Axes((0, 1, 2), 3),
    ),
    "output between": (
        lambda w, x: jnp.einsum("bhi,oih->bo", x, w), (6, 4, 3), [(5, 3, 4)], Axes((1, 2), 0),
    ),
    "contracted around": (
        lambda w, x: jnp.einsum("bih,iohp->bpo", x, w), (3, 6, 4, 2), [(5, 3, 4)],
        Axes((0, 2), (1, 3)),
    ),
    "heads in one axis": (
        lambda w, x: jnp.einsum("td,dhk->htk", x, w.reshape(8, 2, 3)), (8, 6), [(5, 8)], IN_OUT,
    ),
    "axes joined": (
        lambda w, x: x @ w.reshape(8, 6), (8, 2, 3), [(5, 8)], HEADS_OUT,
    ),
    "axes joined on the way in": (
        lambda w, x: x @ w.reshape(6, 8), (2, 3, 8), [(5, 6)], HEADS_IN,
    ),
    "fused heads": (
        lambda w, x: jnp.einsum("td,dnhk->nhtk", x, w.reshape(8, 3, 2, 4)), (8, 24), [(5, 8)],
        IN_OUT,
    ),
    "cast and scaled": (
        lambda w, x: (x @ (0.5 * w.astype(jnp.bfloat16))), (8, 4), [(5, 8)], IN_OUT,
    ),
    "halves": (cut, (8, 6), [(5, 8)], IN_OUT),
    "a part of the rows": (lambda w, x: x @ w[2:6, ::2], (8, 6), [(5, 4)], IN_OUT),
    "masked": (dropped, (8, 6), [(5, 8), jax.random.key(0)], IN_OUT),
    "one output": (lambda w, x: x @ w, (8, 1), [(5, 8)], IN_OUT),
    "one input": (lambda w, x: x @ w, (1, 8), [(5, 1)], IN_OUT),
    "a vector": (lambda w, x: x @ w, (8,), [(5, 8)], Axes(0, ())),
    "WIO": (conv(("NWC", "WIO", "NWC")), (3, 4, 6), [(2, 8, 4)], Axes((0, 1), 2)),
    "HWIO": (conv(("NHWC", "HWIO", "NHWC")), (3, 3, 4, 6), [(2, 8, 8, 4)], HWIO),
    "OIHW": (conv(("NCHW", "OIHW", "NCHW")), (6, 4, 3, 3), [(2, 4, 8, 8)], OIHW),
    "IOHW": (
        conv(("NCHW", "IOHW", "NCHW")), (4, 6, 3, 3), [(2, 4, 8, 8)], Axes((0, 2, 3), 1),
    ),
    "DHWIO": (
        conv(("NDHWC", "DHWIO", "NDHWC")), (2, 3, 3, 4, 6), [(2, 4, 8, 8, 4)],
        Axes((0, 1, 2, 3), 4),
    ),
    "1x1": (conv(("NHWC", "HWIO", "NHWC")), (1, 1, 4, 6), [(2, 8, 8, 4)], HWIO),
    "in groups": (
        conv(("NHWC", "HWIO", "NHWC"), feature_group_count=2), (3, 3, 2, 6), [(2, 8, 8, 4)], HWIO,
    ),
    "by channels": (
        conv(("NHWC", "HWIO", "NHWC"), feature_group_count=4), (3, 3, 1, 4), [(2, 8, 8, 4)], HWIO,
    ),
    "by channels, twice as many": (
        conv(("NCHW", "OIHW", "NCHW"), feature_group_count=4), (8, 1, 3, 3), [(2, 4, 8, 8)], OIHW,
    ),
    "with holes": (
        conv(("NHWC", "HWIO", "NHWC"), lhs_dilation=(2, 2)), (3, 3, 4, 6), [(2, 8, 8, 4)], HWIO,
    ),
    "transposed": (  # JAX's kernel of a transposed convolution as a gradient: (h, w, out, in)
        lambda w, x: lax.conv_transpose(x, w, (2, 2), "SAME", transpose_kernel=True),
        (3, 3, 6, 4), [(2, 8, 8, 4)], Axes((0, 1, 3), 2),
    ),
    "experts with inputs of their own": (
        lambda w, x: jnp.einsum("ebd,edf->ebf", x, w), (3, 8, 6), [(3, 5, 8)], LAYERS,
    ),
    "experts in the middle": (
        lambda w, x: jnp.einsum("bei,ieo->beo", x, w), (8, 3, 6), [(5, 3, 8)],
        Axes(0, 2, batch_axis=1),
    ),
    "mapped experts": (
        lambda w, x: jax.vmap(jnp.matmul)(x, w), (3, 8, 6), [(3, 5, 8)], LAYERS,
    ),
    "ragged experts": (ragged, (3, 8, 6), [(5, 8), shaped((3,), "int32")], LAYERS),
    "one scanned axis": (
        lambda w, x: lax.scan(lambda x, w: (x @ w, None), x, w)[0], (3, 8, 8), [(5, 8)], LAYERS,
    ),
    "two scanned axes": (nested, (2, 3, 8, 8), [(5, 8)], Axes(2, 3, batch_axis=(0, 1))),
    "the second axis scanned": (along_the_second, (8, 3, 8), [(5, 8)], Axes(0, 2, batch_axis=1)),
    "layers by index in a loop": (looped, (3, 8, 8), [(5, 8)], LAYERS),
    "layers by index, out in": (lambda w, x: x @ w[1].T @ w[0].T, (2, 8, 8), [(5, 8)],
                                Axes(2, 1, batch_axis=0)),
    "looked up along the second axis": (looked_up, (4, 9), [INTS], Axes(1, 0, lookup=True)),
    "looked up by products": (
        lambda w, tokens: jax.nn.one_hot(tokens, 9) @ w, (9, 4), [INTS], IN_OUT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_leaf(name):
    function, weight, inputs, expected = CASES[name]
    table = axes_of(function, weight, *inputs)
    assert dict(table) == {"w": expected}
    assert set(table.uses["w"]) == {expected}
    assert not table.unknown


def test_two_kernels_in_one():
    """Side by side, or one above the other, they have the same axes."""

    def model(p, x, h):
        gates = x @ jnp.concatenate([p["a"], p["b"]], 1)
        both = jnp.concatenate([x, h], 1) @ jnp.concatenate([p["c"], p["d"]], 0)
        return gates + both

    shapes = {"a": (8, 3), "b": (8, 4), "c": (8, 7), "d": (5, 7)}
    params = {name: shaped(shape) for name, shape in shapes.items()}
    table = nnopt.graph(model, params, shaped((2, 8)), shaped((2, 5))).axes
    assert dict(table) == dict.fromkeys("abcd", IN_OUT)


def test_tied_embeddings_have_the_axes_of_their_product():
    params = {"embed": shaped((9, 4)), "w": shaped((4, 4))}

    def model(p, tokens):
        return p["embed"][tokens] @ p["w"] @ p["embed"].T

    table = nnopt.graph(model, params, INTS).axes
    assert dict(table) == {"embed": OUT_IN, "w": IN_OUT}
    assert table.uses["embed"] == (LOOKED_UP, OUT_IN)
    assert dict(table.left_out) == {"embed": "the last product"}


def test_experts_that_the_inputs_choose():
    """A matrix for each token is its weight; a row of an embedding is not one of what reads it."""
    params = {"up": shaped((3, 8, 6)), "down": shaped((6, 3, 8)), "one": shaped((3, 8, 8)),
              "embed": shaped((9, 8)), "user": shaped((9, 8)), "w": shaped((8, 4))}  # fmt: skip

    def model(p, tokens, which):
        x = p["embed"][tokens]
        hidden = jnp.einsum("td,tdf->tf", x, p["up"].astype(jnp.bfloat16)[which])
        x = jnp.einsum("tf,tfd->td", hidden, jnp.take(p["down"], which, axis=1).swapaxes(0, 1))
        x = x @ lax.dynamic_index_in_dim(p["one"], which[0], keepdims=False).T
        likes = jnp.einsum("td,td->t", x, p["user"][tokens])
        return likes[:, None] * (x @ p["w"])

    table = nnopt.graph(model, params, INTS, INTS).axes
    assert dict(table) == {
        "up": LAYERS, "down": Axes(0, 2, batch_axis=1), "one": Axes(2, 1, batch_axis=0),
        "embed": LOOKED_UP, "user": LOOKED_UP, "w": IN_OUT,
    }  # fmt: skip
    assert set(table.weights) == {"up", "down", "one"}


def test_embeddings_that_are_only_looked_up_are_left_out():
    params = {"embed": shaped((9, 4)), "place": shaped((9, 4)), "a": shaped((4, 4)),
              "b": shaped((4, 2))}  # fmt: skip

    def model(p, tokens):
        x = p["embed"][tokens] + p["place"][jnp.arange(7)]
        return jnp.tanh(x @ p["a"]) @ p["b"]

    table = nnopt.graph(model, params, INTS).axes
    assert dict(table) == {"embed": LOOKED_UP, "a": IN_OUT, "b": IN_OUT}
    assert dict(table.left_out) == {"embed": "it is only looked up", "b": "the last product"}
    assert table.weights == ("a",)
    assert dict(table.unknown) == {"place": "add does not sum over it"}


def test_uses_that_disagree_are_named_with_their_lines():
    def model(p, x):
        x = jnp.tanh(x @ p["w"])
        x = jnp.tanh(x @ p["w"])  # the same axes once more
        return x @ p["w"].T

    table = nnopt.graph(model, {"w": shaped((4, 4))}, shaped((2, 4))).axes
    assert not dict(table)
    assert table.uses["w"] == (IN_OUT, IN_OUT, OUT_IN)
    reason, first = table.unknown["w"], model.__code__.co_firstlineno
    assert reason.startswith("its uses disagree: Axes(0, 1) in dot_general at test_axes.py:")
    assert f"test_axes.py:{first + 1} (" in reason
    assert f"Axes(1, 0) in dot_general at test_axes.py:{first + 3} (" in reason
    assert f"test_axes.py:{first + 2} (" not in reason


def test_leaves_without_a_product_say_why():
    params = {"bias": shaped((4,)), "scale": shaped((4,)), "idle": shaped((4, 4)),
              "waves": shaped((4, 4)), "w": shaped((4, 4)), "dead": shaped((4, 4))}  # fmt: skip

    def model(p, x):
        _ = x @ p["dead"]
        x = (x + p["bias"][None]) * p["scale"][None] + p["bias"][None]
        return x @ p["w"] + jnp.fft.fft(p["waves"]).real[:1]

    table = nnopt.graph(model, params, shaped((2, 4))).axes
    assert dict(table) == {"w": IN_OUT}
    assert dict(table.unknown) == {
        "bias": "add does not sum over it",
        "scale": "mul does not sum over it",
        "idle": "no product uses it",
        "dead": "no product uses it",
        "waves": "no rule follows it through fft",
    }


def test_the_last_products_are_left_out():
    params = {name: shaped((4, 4)) for name in ("body", "policy", "value")}

    def two_heads(p, x):
        x = jnp.tanh(x @ p["body"])
        return x @ p["policy"], (x @ p["value"]).mean(-1)

    table = nnopt.graph(two_heads, params, shaped((2, 4))).axes
    assert set(table.left_out) == {"policy", "value"}
    assert table.weights == ("body",)

    def hidden_too(p, x):
        hidden = jnp.tanh(x @ p["body"])
        return hidden @ p["policy"], hidden

    table = nnopt.graph(hidden_too, params, shaped((2, 4))).axes
    assert set(table.left_out) == {"policy"}

    def residual(p, x):
        x = x + jnp.tanh(x @ p["body"])
        return x + jnp.tanh(x @ p["policy"])

    table = nnopt.graph(residual, params, shaped((2, 4))).axes
    assert set(table.left_out) == {"policy"}

    alone = nnopt.graph(lambda p, x: x @ p["body"], params, shaped((2, 4))).axes
    assert alone.weights == ("body",)  # of one weight nothing would be left


def test_generated_tokens_do_not_hide_the_last_product():
    """What is written next comes from the head, and only chooses what is looked up."""
    params = {"embed": shaped((9, 4)), "w": shaped((4, 4)), "head": shaped((4, 9))}

    def write(p, token):
        def step(token, _):
            logits = jnp.tanh(p["embed"][token] @ p["w"]) @ p["head"]
            return logits.argmax(-1).astype(token.dtype), logits

        return lax.scan(step, token, None, length=3)[1]

    table = nnopt.graph(write, params, INTS).axes
    assert dict(table.left_out) == {"embed": "it is only looked up", "head": "the last product"}


def test_a_weight_that_a_condition_chooses():
    params = {"a": shaped((4, 4)), "b": shaped((4, 4)), "c": shaped((4, 4))}

    def model(p, x):
        one = lax.cond(x[0, 0] > 0, lambda: p["a"].T, lambda: p["b"])
        return x @ jnp.where(x[0, 0] > 1, one, p["c"]).T

    table = nnopt.graph(model, params, shaped((2, 4))).axes
    assert dict(table) == {"a": IN_OUT, "b": OUT_IN, "c": OUT_IN}


@pytest.mark.parametrize("split", ["rows", "columns"])
def test_products_over_a_mesh(split):
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("model",))
    spec = jax.sharding.PartitionSpec
    rows, columns = spec("model", None), spec(None, "model")

    def product(x, w):
        return lax.psum(x @ w, "model") if split == "rows" else x @ w

    run = jax.shard_map(
        product, mesh=mesh,
        in_specs=(columns, rows) if split == "rows" else (spec(), columns),
        out_specs=spec() if split == "rows" else columns,
    )  # fmt: skip
    assert dict(axes_of(lambda w, x: run(x, w), (8, 6), (5, 8))) == {"w": IN_OUT}
    assert dict(axes_of(lambda w, x: run(x, w.T), (6, 8), (5, 8))) == {"w": OUT_IN}


def test_one_weight_of_random_orders_is_found_by_its_labels():
    """Whatever the order of axes, labels in both operands are summed, batched or kept."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = "".join(rng.permutation(list("abcio")))
        given = "".join(rng.permutation(list("xabc" if rng.random() < 0.5 else "xabci")))
        out = "".join(rng.permutation([x for x in "xaio" if x in labels + given]))
        sizes = {"a": 2, "b": 3, "c": 4, "i": 5, "o": 6, "x": 7}
        text = f"{given},{labels}->{out}"
        table = axes_of(
            lambda w, x, text=text: jnp.einsum(text, x, w),
            tuple(sizes[x] for x in labels), tuple(sizes[x] for x in given),
        )  # fmt: skip
        roles = ([], [], [])
        for axis, label in enumerate(labels):
            shared = label in given
            roles[0 if label not in out else 2 if shared else 1].append(axis)
        assert dict(table) == {"w": Axes(*map(tuple, roles))}, text
