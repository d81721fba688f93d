from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from nnopt_jax.errors import RecipeError
from nnopt_jax.interop.flax import adapt
from nnopt_jax.tree import flatten
from nnopt_jax.zoo.lenet import lenet_300_100, lenet_300_100_nnx

X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


class Deep(nnx.Module):
    """Twelve layers, so that numbered names and sorted names differ in order."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(6, 6, rngs=rngs) for _ in range(12)])
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = jax.nn.tanh(layer(x))
        return self.drop(self.norm(x))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(6)(x))
        return linen.Dropout(0.5, deterministic=not train)(x)


def test_linen_and_nnx_name_leaves_alike():
    images = jnp.zeros((1, 28, 28, 1))
    linen_model = adapt(lenet_300_100(), images, jax.random.key(0))
    nnx_model = adapt(lenet_300_100_nnx(nnx.Rngs(0)), images, None)
    assert list(flatten(linen_model.params)) == list(flatten(nnx_model.params))
    ours, _ = linen_model.apply(linen_model.params, {}, images)
    theirs, _ = nnx_model.apply(linen_model.params, {}, images)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_nnx_computes_what_the_module_does():
    module = Deep(nnx.Rngs(0))
    model = adapt(module, X, None)
    assert set(model.extra) == {"state", "rngs"}
    out, extra = model.apply(model.params, model.extra, X)
    module.eval()
    np.testing.assert_array_equal(out, module(X))
    assert jax.tree.structure(extra) == jax.tree.structure(model.extra)


def test_nnx_reads_the_parameters_given():
    model = adapt(Deep(nnx.Rngs(0)), X, None)
    other = adapt(Deep(nnx.Rngs(1)), X, None)
    ours, _ = model.apply(other.params, other.extra, X)
    theirs, _ = other.apply(other.params, other.extra, X)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("made", [Linen(), "nnx"])
def test_training_moves_running_means_and_draws_dropout(made):
    made = Deep(nnx.Rngs(0)) if made == "nnx" else made
    model = adapt(made, X, jax.random.key(0))

    @jax.jit
    def train(extra, key):
        return model.apply(model.params, extra, X, train=True, key=key)

    first, extra = train(model.extra, jax.random.key(1))
    second, _ = train(extra, jax.random.key(2))
    assert (np.asarray(first) == 0).sum() != 0
    assert (np.asarray(first) != np.asarray(second)).any()
    name = "state" if "state" in extra else "batch_stats"
    before, after = (np.concatenate([np.ravel(v) for v in flatten(e[name]).values()])
                     for e in (model.extra, extra))  # fmt: skip
    assert (before != after).any()
    again, _ = train(model.extra, jax.random.key(1))
    np.testing.assert_array_equal(first, again)


def test_a_pair_is_a_model():
    model = adapt(({"w": jnp.eye(6)}, lambda params, x: x @ params["w"]), X, None)
    out, extra = model.apply(model.params, model.extra, X, train=True, key=None)
    np.testing.assert_array_equal(out, X)
    assert extra == {}


@pytest.mark.parametrize("made", [None, 3, ({}, 3), Linen])
def test_what_is_no_model(made):
    with pytest.raises(RecipeError, match="is not a model"):
        adapt(made, X, None)
