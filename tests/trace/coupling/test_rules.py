"""Each primitive by itself: what goes together, what stays, and the smaller function's numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import nnopt_jax as nnopt
from tests import tolerance


def drawn(*shape, seed=0):
    rng = np.random.default_rng(seed + sum(shape))
    return jnp.asarray(rng.normal(size=shape).astype(np.float32))


X = drawn(2, 3)
P = {"a": drawn(3, 8), "b": drawn(8, 2), "c": drawn(8), "d": drawn(4, 2), "e": drawn(16, 2)}


def hidden(p, x):
    return x @ p["a"]


def normed(p, x):
    """Columns of zeros have no direction: 0/0."""
    return x @ (p["a"] / jnp.linalg.norm(p["a"], axis=0, keepdims=True)) @ p["b"]


def repeated_conv(p, x):
    kernel = jnp.ones((1, 8, 8)) * p["c"][None, None]
    return lax.conv_general_dilated(
        hidden(p, x)[:, None], kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )


def looped(p, x):
    body = lambda i, h: jnp.tanh(h * p["c"][None])  # noqa: E731
    return lax.fori_loop(0, x.shape[0] + 1, body, hidden(p, x)) @ p["b"]


def until(p, x):
    body = lambda state: (state[0] + 1, jnp.tanh(state[1] * p["c"][None]) + x[:, :1])  # noqa: E731
    return lax.while_loop(lambda s: s[0] < 3, body, (0, hidden(p, x)))[1] @ p["b"]


def branched(p, x):
    h = hidden(p, x)
    return lax.cond(x[0, 0] > 0, lambda h: h * p["c"][None], jnp.sin, h) @ p["b"]


def cached(p, x):
    cache = lax.fori_loop(
        0,
        x.shape[0],
        lambda i, c: lax.dynamic_update_slice(c, hidden(p, x)[i][None], (i, 0)),
        jnp.zeros((5, 8)),
    )
    return lax.dynamic_slice(cache, (1, 0), (2, 8)) @ p["b"]


# What is computed, and the sizes of the dimensions that should be found.
CASES = {
    "split": (lambda p, x: sum(jnp.split(hidden(p, x), 2, -1)) @ p["d"], [4]),
    "strided": (lambda p, x: (hidden(p, x)[:, ::2] * hidden(p, x)[:, 1::2]) @ p["d"], [4]),
    "reversed": (lambda p, x: (hidden(p, x)[:, ::-1] + hidden(p, x)) @ p["b"], [4]),
    "slice": (lambda p, x: hidden(p, x)[:, 2:6] @ p["d"], [4]),
    "rolled": (lambda p, x: jnp.roll(hidden(p, x), 3, -1) @ p["b"], [8]),
    "concatenated": (
        lambda p, x: jnp.concatenate([hidden(p, x), jnp.tanh(hidden(p, x))], -1) @ p["e"],
        [8],
    ),
    "repeated": (lambda p, x: jnp.repeat(hidden(p, x), 2, -1) @ p["e"], [8, 2]),
    "tiled": (lambda p, x: jnp.tile(hidden(p, x), (1, 2)) @ p["e"], [8, 2]),
    "padded": (lambda p, x: jnp.pad(hidden(p, x), ((0, 0), (3, 5))) @ p["e"], [8]),
    "rectangle": (
        lambda p, x: jnp.einsum(
            "bij,ij->bj", hidden(p, x).reshape(-1, 2, 4), p["c"].reshape(2, 4)
        ).sum(-1),
        [2, 4],
    ),
    "transposed": (
        lambda p, x: hidden(p, x).reshape(-1, 2, 4).transpose(0, 2, 1).reshape(-1, 8) @ p["b"],
        [2, 4],
    ),
    "other rectangle": (  # 2 x 4 and 4 x 2 of the same elements: 2 x 2 x 2
        lambda p, x: (
            hidden(p, x).reshape(-1, 2, 4).sum(1).sum(-1)
            + hidden(p, x).reshape(-1, 4, 2).sum(1).sum(-1)
        ),
        [2, 2, 2],
    ),
    "loop": (looped, [8]),
    "until": (until, [8]),
    "branches": (branched, [8]),
    "cache": (cached, [8]),
    "taken": (lambda p, x: jnp.take(hidden(p, x), jnp.array([1, 0, 1]), 0) @ p["b"], [8]),
    "set": (lambda p, x: jnp.zeros((4, 8)).at[1:3].set(hidden(p, x)) @ p["b"], [8]),
    "added": (lambda p, x: jnp.ones((4, 8)).at[jnp.array([0, 3])].add(hidden(p, x)) @ p["b"], [8]),
    "sorted batch": (lambda p, x: jnp.sort(hidden(p, x), 0) @ p["b"], [8]),
    "running sum": (lambda p, x: jnp.cumsum(hidden(p, x), 0) @ p["b"], [8]),
    "sum": (lambda p, x: (hidden(p, x) * p["c"][None]).sum(-1), [8]),
    "mean": (lambda p, x: jnp.tanh(hidden(p, x)).mean(-1), [8]),
    "two sums": (  # a half for each that is gone, along one axis; columns stay
        lambda p, x: jax.nn.sigmoid(hidden(p, x)).reshape(-1, 2, 4).sum((1, 2)),
        [2],
    ),
    "variance": (lambda p, x: jnp.var(hidden(p, x) + p["c"][None], -1), [8]),
    "sum of exponentials": (lambda p, x: jnp.exp(hidden(p, x)).sum(-1), [8]),
    "constants": (lambda p, x: (hidden(p, x) * jnp.arange(8.0)[None]) @ p["b"], [8]),
    "dropped": (
        lambda p, x: (hidden(p, x) * jax.random.bernoulli(jax.random.key(0), 0.5, (2, 8))) @ p["b"],
        [8],
    ),
    "clipped": (lambda p, x: jnp.clip(hidden(p, x), -1, 1).sum(-1), [8]),
    "barrier": (lambda p, x: lax.optimization_barrier(hidden(p, x)) @ p["b"], [8]),
    "stopped": (lambda p, x: lax.stop_gradient(hidden(p, x)) @ p["b"], [8]),
    "inner gradient": (
        lambda p, x: jax.grad(lambda x: (jnp.tanh(hidden(p, x)) @ p["b"]).sum())(x),
        [8, 2],  # outputs are added up, and may go, too
    ),
    "convolution": (lambda p, x: repeated_conv(p, x)[:, 0] @ p["b"], [8, 8]),
}


@pytest.mark.isa
@pytest.mark.parametrize("name", CASES)
def test_what_goes_together(name):
    apply, sizes = CASES[name]
    graph = nnopt.graph(apply, P, X)
    dimensions = graph.coupled.dimensions
    assert [each.size for each in dimensions] == sizes
    rng = np.random.default_rng(0)
    keep = {each.name: rng.permutation(each.size)[: each.size // 2] for each in dimensions}
    order = {each.name: rng.permutation(each.size) for each in dimensions if each.exchangeable}

    @jax.jit
    def outcomes(p, x):
        small = graph.shrink(p, keep)
        return (
            small.apply(small.params, x),
            apply(graph.mask(p, keep), x),
            apply(graph.permute(p, order), x),
            apply(p, x),
        )

    small, masked, permuted, whole = outcomes(P, X)
    bound = tolerance.relative(apply, P, X)
    np.testing.assert_allclose(small, masked, rtol=0, atol=bound * np.abs(masked).max())
    np.testing.assert_allclose(permuted, whole, rtol=0, atol=bound * np.abs(whole).max())
    if sizes:
        assert np.abs(masked - whole).max() > 1e-3


# Functions that need all units, and a word of the reason.
FROZEN = {
    "largest": (lambda p, x: hidden(p, x).max(-1), "reduce_max"),
    "softmax": (lambda p, x: jax.nn.softmax(hidden(p, x)) @ p["b"], "reduce_max"),
    "position": (lambda p, x: hidden(p, x).argmax(-1), "argmax"),
    "sorted": (lambda p, x: jnp.sort(hidden(p, x)) @ p["b"], "sort"),
    "top": (lambda p, x: lax.top_k(hidden(p, x), 4)[0] @ p["d"], "top_k"),
    "running": (lambda p, x: jnp.cumsum(hidden(p, x), -1) @ p["b"], "cumsum"),
    "element": (lambda p, x: hidden(p, x)[:, 3:4] @ p["b"][:1], "unused"),
    "index": (lambda p, x: hidden(p, x)[:, jnp.array([1, 2])] @ p["b"][:2], "gather"),
    "both unbounded": (
        lambda p, x: jax.nn.sigmoid(hidden(p, x)) @ jax.nn.sigmoid(hidden(p, x)).T,
        "in both factors",
    ),
    "unknown": (lambda p, x: jnp.fft.fft(hidden(p, x)).real @ p["b"], "no rule for fft"),
    "columns of length one": (normed, "is not finite where units are removed"),
    "output": (hidden, "output"),
}


@pytest.mark.parametrize("name", FROZEN)
def test_what_stays_and_why(name):
    apply, word = FROZEN[name]
    coupled = nnopt.graph(apply, P, X).coupled
    assert not [each for each in coupled.dimensions if ("a", 1) in each.members]
    assert word in coupled.frozen["a", 1]


def test_reasons_name_the_users_line():
    def apply(p, x):
        return jnp.sort(hidden(p, x)) @ p["b"]

    assert "test_rules.py:" in nnopt.graph(apply, P, X).coupled.frozen["a", 1]


def test_sums_of_alike_units_count_them():
    """A sum over sigmoids counts a half for each unit that is gone."""
    apply = lambda p, x: jax.nn.sigmoid(hidden(p, x)).sum(-1)  # noqa: E731
    graph = nnopt.graph(apply, P, X)
    small = graph.shrink(P, {"a:1": [2]})
    wanted = 1 / (1 + np.exp(-np.asarray(X) @ np.asarray(P["a"])[:, 2])) + 7 * 0.5
    np.testing.assert_allclose(small.apply(small.params, X), wanted, rtol=1e-6)


def test_elements_nobody_reads_are_no_units():
    coupled = nnopt.graph(lambda p, x: hidden(p, x)[:, :3], P | {"f": drawn(9)}, X).coupled
    assert not coupled.dimensions
    assert coupled.frozen["f", 0] == "unused"
