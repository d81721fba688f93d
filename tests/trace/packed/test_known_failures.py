"""What other libraries that look for weights inside of models get wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import nnopt_jax as nnopt

INT8 = nnopt.quantization.uniform(8, granularity="channel")
DRAWS = np.random.default_rng(0)


def drawn(*shape):
    return DRAWS.normal(size=shape).astype(np.float32)


def packed(**leaves):
    return INT8.pack(leaves, INT8.init(leaves))


def same(run, params, *args):
    """Packed as dense, and nothing materialized on the way."""
    wanted = run(nnopt.materialize(params), *args)
    found = jax.jit(nnopt.on_packed(run, strict=True))(params, *args)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)


def test_a_square_activation_is_no_weight():
    def run(params, x):
        return (x @ x.T) @ params["w"] @ x

    same(run, packed(w=drawn(4, 4)), drawn(4, 4))


def test_an_inner_function_is_traced_for_arrays_and_for_leaves():
    traces = []

    @jax.jit
    def inner(w, x):
        traces.append(type(w).__name__)
        return x @ w

    def run(params, x):
        return inner(params["a"], inner(params["b"], x))

    params, x = packed(a=drawn(4, 4), b=drawn(4, 4)), drawn(3, 4)
    before = inner(params["a"].materialize(), x)
    for _ in range(2):
        same(run, params, x)
        np.testing.assert_array_equal(inner(params["a"].materialize(), x), before)
    assert len(traces) == 1  # one shape: what was traced for arrays serves for leaves


def test_an_embedding_that_is_tied_to_the_output():
    def run(params, tokens):
        return params["embed"][tokens] @ params["embed"].T

    same(run, packed(embed=drawn(8, 4)), np.array([[1, 7, 0]]))


def test_a_stack_of_layers_that_is_scanned_over():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.tanh(nn.Dense(4, use_bias=False)(x)), None

    model = nn.scan(Layer, {"params": 0}, split_rngs={"params": True}, length=3)()
    x = drawn(2, 4)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, None)
    params = jax.tree.map(lambda leaf: drawn(*leaf.shape), shapes)
    tx = INT8.bind(axes={"**": nnopt.Axes(1, 2, batch_axis=0)})
    same(lambda params, x: model.apply(params, x, None)[0], tx.pack(params, tx.init(params)), x)


def test_a_weight_that_is_turned_or_doubled_first():
    def run(params, x):
        return x @ params["w"].T + x @ (params["w"] * 2)

    same(run, packed(w=drawn(4, 4)), drawn(3, 4))


def test_a_method_whose_first_argument_has_another_name():
    class Model(nn.Module):
        @nn.compact
        def __call__(this, x):  # noqa: N805, RUF100
            return nn.Dense(3, use_bias=False)(x)

    params = {"params": {"Dense_0": {"kernel": drawn(4, 3)}}}
    same(Model().apply, INT8.pack(params, INT8.init(params)), drawn(2, 4))


def test_a_convolution_whose_weights_alone_are_rounded():
    def run(params, x):
        return jax.lax.conv(x, params["w"], (1, 1), "SAME")

    tx = nnopt.quantization.uniform(8, granularity="channel", axis=0)
    params = {"w": drawn(4, 2, 3, 3)}
    same(run, tx.pack(params, tx.init(params)), jnp.asarray(drawn(1, 2, 5, 5)))
