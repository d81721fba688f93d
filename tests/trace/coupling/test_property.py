"""Random networks whose layers add, concatenate and split what others made."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings, strategies as st

import nnopt_jax as nnopt

WIDTH = 4


def network(plan):
    """A function and parameters of a plan: for each layer what it does with two earlier ones."""
    rng = np.random.default_rng(len(plan))
    widths, params = [3], {}
    for at, (kind, left, right) in enumerate(plan):
        a, b = left % len(widths), right % len(widths)
        if kind == "dense" or (kind in ("add", "multiply") and widths[a] != widths[b]):
            params[f"w{at}"] = rng.normal(size=(widths[a], WIDTH)).astype(np.float32)
            params[f"b{at}"] = rng.normal(size=WIDTH).astype(np.float32)
            widths.append(WIDTH)
        elif kind in ("add", "multiply"):
            widths.append(widths[a])
        elif kind == "join":
            widths.append(widths[a] + widths[b])
        else:
            widths.append(widths[a] // 2 if widths[a] % 2 == 0 else widths[a])
    params["out"] = rng.normal(size=(sum(widths), 2)).astype(np.float32)

    def apply(p, x):
        made = [x]
        for at, (kind, left, right) in enumerate(plan):
            a, b = made[left % len(made)], made[right % len(made)]
            if f"w{at}" in p:
                made.append(jnp.tanh(a @ p[f"w{at}"] + p[f"b{at}"][None]))
            elif kind == "add":
                made.append(a + b)
            elif kind == "multiply":
                made.append(a * b)
            elif kind == "join":
                made.append(jnp.concatenate([a, b], -1))
            elif a.shape[-1] % 2 == 0:
                made.append(jnp.maximum(*jnp.split(a, 2, -1)))
            else:
                made.append(a[:, ::-1])
        return jnp.concatenate(made, -1) @ p["out"]

    return apply, params


LAYERS = st.lists(
    st.tuples(
        st.sampled_from(["dense", "dense", "add", "multiply", "join", "halve"]),
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    min_size=2,
    max_size=6,
)


@settings(max_examples=6)
@given(LAYERS, st.integers(0, 99))
def test_random_networks(plan, seed):
    apply, params = network(plan)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    graph = nnopt.graph(apply, params, x[:1])
    dimensions = graph.coupled.dimensions
    rng = np.random.default_rng(seed)
    keep = {each.name: rng.permutation(each.size)[: -(-each.size // 2)] for each in dimensions}
    order = {each.name: rng.permutation(each.size) for each in dimensions}

    @jax.jit
    def outcomes(p, x):
        small = graph.shrink(p, keep)
        return (
            (small.apply(small.params, x), apply(graph.mask(p, keep), x)),
            (apply(graph.permute(p, order), x), apply(p, x)),
        )

    for found, wanted in outcomes(params, x):
        scale = 1 + np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * scale)
