"""Leaves that are multiplied with one input have one statistic, which is stored once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import nnopt_jax as nnopt
from nnopt_jax.trace.statistics.batch_reader import read_program
from nnopt_jax.trace.statistics.statistics import input_gram

DRAW = np.random.default_rng(5)


def drawn(*shape):
    return (DRAW.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)


def normed(x):
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


def attention(q, k, v):
    weights = jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2))
    return weights @ v


def decoder(p, x):
    """Llama's projections; each casts and reshapes the activation for itself, as Flax does."""

    def dense(x, w):
        rows = x.reshape(-1, x.shape[-1]).astype(jnp.bfloat16).astype(jnp.float32)
        return (rows @ w).reshape(*x.shape[:-1], -1)

    for layer in p["layers"]:
        y = normed(x)
        q, k, v = (dense(y, layer[name]) for name in "qkv")
        repeats = q.shape[-1] // k.shape[-1]
        k, v = jnp.tile(k, (1, 1, repeats)), jnp.tile(v, (1, 1, repeats))
        x = x + dense(attention(q, k, v), layer["o"])
        y = normed(x)
        x = x + dense(jax.nn.silu(dense(y, layer["gate"])) * dense(y, layer["up"]), layer["down"])
    return x


def shapes(width, narrow, hidden):
    return {
        "q": (width, width), "k": (width, narrow), "v": (width, narrow), "o": (width, width),
        "gate": (width, hidden), "up": (width, hidden), "down": (hidden, width),
    }  # fmt: skip


def distinct(layers, width, hidden):
    """Bytes of the Gram matrices of the inputs of q, k, v; of o; of gate, up; and of down."""
    return layers * 4 * (3 * width**2 + hidden**2)


def unique(tree):
    return {id(x): x for x in jax.tree.leaves(tree)}.values()


def test_a_decoder_has_the_grams_of_its_distinct_inputs():
    layers = [{name: drawn(*s) for name, s in shapes(8, 4, 12).items()} for _ in range(2)]
    params, x = {"layers": layers}, drawn(2, 5, 8)
    graph = nnopt.graph(decoder, params, x)
    seen = graph.observe(params, [x, 2 * x], ("input_gram", "input_moments", "output_moments"))
    grams = unique([seen["input_gram"], seen.by_use["input_gram"]])
    assert sum(gram.nbytes for gram in grams) == distinct(2, 8, 12)
    for layer in range(2):
        at = f"layers/{layer}/"
        for first, *others in ("qkv", ("gate", "up")):
            for name in others:
                assert seen["input_gram"][at + name] is seen["input_gram"][at + first]
                one, other = (seen["input_moments"][at + n].mean for n in (first, name))
                assert one is other
        assert seen["output_moments"][at + "k"].mean is not seen["output_moments"][at + "v"].mean
    rows = [np.asarray(normed(batch)).reshape(-1, 8) for batch in (x, 2 * x)]
    rows = np.concatenate(rows).astype(jnp.bfloat16).astype(np.float64)
    np.testing.assert_allclose(seen["input_gram"]["layers/0/k"], rows.T @ rows, rtol=1e-5)
    mean = np.asarray(seen["input_moments"]["layers/0/v"].mean)[:, 0]
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-4, atol=1e-6)
    values = rows @ layers[0]["v"].astype(np.float64)
    mean = np.asarray(seen["output_moments"]["layers/0/v"].mean)[0]
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-4, atol=1e-6)


def test_a_language_model_of_135_million_parameters():
    """SmolLM2-135M: thirty layers in a loop; shapes alone."""
    layers = [
        {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes(576, 192, 1536).items()}
        for _ in range(30)
    ]
    params, x = {"layers": layers}, jax.ShapeDtypeStruct((1, 16, 576), jnp.float32)
    chosen = nnopt.tree.flatten(params)
    found = []

    def run(params, x):
        found.append(read_program(decoder, params, x, chosen, [input_gram()]))
        return jnp.zeros(())

    jax.eval_shape(run, params, x)
    totals = jax.eval_shape(found[0].start)
    states = [state for key, state in totals.items() if key[0] == "input_gram"]
    total = sum(4 * state.size for state in states)
    assert total == distinct(30, 576, 1536)
    assert round(total / 1e6) == 403


def test_inputs_that_differ_are_kept_apart():
    """One is scaled, one is used in a branch, one in a loop, one is a part of another."""
    params, x = {name: drawn(4, 4) for name in "abcde"}, drawn(5, 4)

    def apply(p, x):
        y = x @ p["a"] + (2 * x) @ p["b"] + x[:, :2] @ p["e"][:2]
        y = y + jax.lax.cond(x[0, 0] > 1e9, lambda x: x @ p["c"], jnp.zeros_like, x)
        y, _ = jax.lax.scan(lambda y, _: (y + x @ p["d"], None), y, None, length=3)
        return y

    seen = nnopt.graph(apply, params, x).observe(params, [x], "input_gram")
    gram = x.T @ x
    for path, wanted in {"a": gram, "b": 4 * gram, "d": 3 * gram, "e": gram[:2, :2]}.items():
        np.testing.assert_allclose(seen["input_gram"][path], wanted, rtol=1e-4, atol=1e-5)
    assert seen.lacking["input_gram"] == {"c": "no batch has reached it"}


def test_layers_of_a_scan_share_inside_of_it():
    params, x = {name: drawn(3, 4, 4) for name in "qkv"}, drawn(5, 4)

    def layer(x, w):
        return jnp.tanh(x @ w["q"] + x @ w["k"] + x @ w["v"].T), None

    graph = nnopt.graph(lambda p, x: jax.lax.scan(layer, x, p)[0], params, x)
    seen = graph.observe(params, [x], "input_gram")
    grams = unique([seen["input_gram"], seen.by_use["input_gram"]])
    assert sum(gram.nbytes for gram in grams) == 3 * 4 * 4 * 4
    for number in range(3):
        gram = x.T @ x
        np.testing.assert_allclose(seen["input_gram"]["v"][number], gram, rtol=1e-4, atol=1e-5)
        x = np.tanh(x @ (params["q"][number] + params["k"][number] + params["v"][number].T))


def test_a_leaf_used_twice_with_one_input_counts_it_twice():
    w, x = drawn(4, 4), drawn(5, 4)
    graph = nnopt.graph(lambda p, x: x @ p["w"] + jnp.tanh(x @ p["w"]), {"w": w}, x)
    seen = graph.observe({"w": w}, [x], "input_gram")
    uses = [seen.by_use["input_gram"]["w", number] for number in range(2)]
    assert uses[0] is uses[1]
    np.testing.assert_allclose(uses[0], x.T @ x, rtol=1e-5)
    np.testing.assert_allclose(seen["input_gram"]["w"], 2 * x.T @ x, rtol=1e-5)
