"""What models of language may look at; their numbers are compared with PyTorch's in reference/."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.zoo.bert import Bert
from nnopt_jax.zoo.llama import Llama

KEY = jax.random.key(0)
IDS, OTHER = np.array([[1, 2, 3, 4, 5]]), np.array([[1, 2, 3, 4, 9]])


def test_llama_does_not_look_ahead():
    model = Llama(vocabulary=10, width=8, layers=1, heads=2, shared=1, hidden=16)
    params = jax.tree.map(lambda x: 20 * x, model.init(KEY))
    apply = jax.jit(model.apply)
    one, changed, other = (np.asarray(apply(params, ids)) for ids in (IDS, OTHER, IDS[:, ::-1]))
    np.testing.assert_array_equal(one[:, :4], changed[:, :4])
    assert np.abs(one[:, 4] - changed[:, 4]).max() > 1e-3
    assert np.abs(one[:, 2] - other[:, 2]).max() > 1e-3  # the same token elsewhere


def test_stacked_and_recomputed_blocks_are_the_same_model():
    sizes = {"vocabulary": 10, "width": 8, "layers": 3, "heads": 2, "shared": 1, "hidden": 16}
    one, other = Llama(**sizes), Llama(**sizes, stacked=True, remat=True)

    def slope(model):
        def loss(params):
            return jnp.square(model.apply(params, IDS)).mean()

        return jax.jit(jax.grad(loss))(model.init(KEY))

    found, wanted = slope(other), slope(one)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *wanted["layers"])
    assert jax.tree.map(jnp.shape, found["layers"]) == jax.tree.map(jnp.shape, stacked)
    for a, b in zip(
        jax.tree.leaves(found), jax.tree.leaves(wanted | {"layers": stacked}), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_bert_looks_at_what_the_mask_allows():
    model = Bert(vocabulary=10, width=8, layers=1, heads=2, hidden=16, positions=5)
    params = jax.tree.map(lambda x: 20 * x, model.init(KEY))
    mask = np.array([[1, 1, 1, 1, 0]])
    apply = jax.jit(model.apply)
    one, other = (np.asarray(apply(params, ids, mask)) for ids in (IDS, OTHER))
    np.testing.assert_array_equal(one[:, :4], other[:, :4])
    every = np.ones_like(mask)
    assert np.abs(np.asarray(apply(params, IDS, every)) - one)[:, :4].max() > 1e-3
