"""Tied leaves: one gradient, one payload, and what other transforms mean around them."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.arrays import Masked, Reshaped
from nnopt_jax.errors import CompositionError, SelectionError, ShapeError, ValueRangeError

tie = nnopt.compression.tie
EMBED = jax.random.normal(jax.random.key(0), (40, 16))
PARAMS = {"embed": {"embedding": EMBED}, "head": {"kernel": jnp.full((16, 40), 7.0)}}
TIED = tie({"head/kernel": "embed/embedding"}, transpose=True)
EMBED_ONLY = "embed/*"


def _loss(params, words):
    """A model of one step: look up, multiply, score."""
    x = jnp.take(params["embed"]["embedding"], words, axis=0)
    return jax.nn.logsumexp(x @ params["head"]["kernel"], axis=-1).sum()


def test_both_uses_reach_the_source():
    words = jnp.array([3, 0, 3, 17])
    value, grads = nnopt.value_and_grad(_loss, TIED)(PARAMS, TIED.init(PARAMS), words)

    def tied_by_hand(embedding):
        return _loss({"embed": {"embedding": embedding}, "head": {"kernel": embedding.T}}, words)

    wanted, slope = jax.value_and_grad(tied_by_hand)(EMBED)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(grads.train.params["embed"]["embedding"], slope, atol=1e-5)
    assert not np.asarray(grads.train.params["head"]["kernel"]).any()


@pytest.mark.parametrize("transpose", [False, True])
def test_scores_of_the_source_hear_of_both_uses(transpose):
    params = {"e": jnp.ones((3, 3)), "h": jnp.ones((3, 3))}
    later = nnopt.pruning.one_shot(0.5, 9)
    score = nnopt.pruning.taylor(later, power=1, where="e", every=10, decay=0.0)
    tx = nnopt.chain(score, nnopt.compression.tie({"h": "e"}, transpose=transpose))
    state, slope = tx.init(params), jnp.arange(9.0).reshape(3, 3)
    _, grads = nnopt.value_and_grad(lambda p: (p["e"] + p["h"] * slope).sum(), tx)(params, state)
    _, after = tx.update(params, state, grads=grads)
    wanted = 1 + (slope.T if transpose else slope)
    np.testing.assert_allclose(after[0].rest["e"]["memory"], wanted, rtol=1e-6)


@pytest.mark.parametrize("first", [None, nnopt.quantization.uniform(4, where=EMBED_ONLY)])
def test_a_learned_table_of_the_source_gets_both_gradients(first):
    links = [nnopt.compression.codebook(4, learned=True, where=EMBED_ONLY), TIED]
    tx = nnopt.chain(*([first] if first else []), *links)
    state = tx.init(PARAMS)
    _, grads = nnopt.value_and_grad(_loss, tx)(PARAMS, state, jnp.arange(5))
    source = tx.encode(PARAMS, state)["embed"]["embedding"]
    shared = source.codes if first else source
    scale = float(source.scale[0, 0]) if first else 1.0
    both = grads.dense["embed"]["embedding"] + grads.dense["head"]["kernel"].T
    wanted = [np.asarray(both)[np.asarray(shared.indices) == c].sum() * scale for c in range(4)]
    got = grads.train.learned[-2]["embed/embedding"][0]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_an_update_leaves_the_targets_own_parameter_alone():
    tx = nnopt.chain(nnopt.pruning.magnitude(0.5, where=EMBED_ONLY), TIED)
    params, _ = tx.update(PARAMS, tx.init(PARAMS))
    np.testing.assert_array_equal(params["head"]["kernel"], PARAMS["head"]["kernel"])
    assert (np.asarray(params["embed"]["embedding"]) == 0).sum() == 320


def _bytes(tree, folder):
    file = folder / "tree.nnopt"
    nnopt.save(file, tree)
    back = nnopt.load(file)
    for got, wanted in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    return os.path.getsize(file)


def test_the_weights_are_once_in_memory_and_on_disk(tmp_path):
    tx = nnopt.chain(
        nnopt.pruning.magnitude(0.75, where=EMBED_ONLY),
        nnopt.compression.codebook(8, where=EMBED_ONLY),
        TIED,
    )
    packed = tx.pack(PARAMS, tx.init(PARAMS))
    assert packed["head"]["kernel"].base is packed["embed"]["embedding"]
    one = _bytes({"embed": packed["embed"]}, tmp_path)
    assert _bytes(packed, tmp_path) < one + 80
    shown = nnopt.materialize(packed)
    np.testing.assert_array_equal(shown["head"]["kernel"], shown["embed"]["embedding"].T)


def test_links_after_a_tie_act_on_each_leaf_by_itself(tmp_path):
    """Equal codes of a grid are stored once all the same; a mask of the target is its own."""
    params = PARAMS | {"copy": jnp.zeros((40, 16))}
    tied = nnopt.chain(TIED, tie({"copy": "embed/embedding"}))
    grid = nnopt.chain(tied, nnopt.quantization.uniform(8))
    packed = grid.pack(params, grid.init(params))
    one = _bytes({"embed": packed["embed"]}, tmp_path)
    assert _bytes(packed, tmp_path) < one + 120
    tx = nnopt.chain(tied, nnopt.pruning.magnitude(0.5, where="re:head|copy"),
                     nnopt.quantization.uniform(8))  # fmt: skip
    state = tx.init(params)
    leaf = tx.encode(params, state)["head"]["kernel"]
    assert isinstance(leaf, Masked)
    assert isinstance(leaf.values, Reshaped)
    shown = tx.apply(params, state)
    for name, wanted in (("head/kernel", 0.5), ("copy", 0.5), ("embed/embedding", 0.0)):
        values = np.asarray(nnopt.tree.flatten(shown)[name])
        assert (values == 0).mean() == pytest.approx(wanted, abs=0.02)
    np.testing.assert_array_equal(
        nnopt.materialize(tx.pack(params, state))["head"]["kernel"], shown["head"]["kernel"]
    )


def test_masks_of_a_transposed_target_decide_what_ranges_see():
    """The greatest weights are pruned from the target, so its range is smaller."""
    tx = nnopt.chain(TIED, _drops_greatest(), nnopt.quantization.uniform(8))
    state = tx.init(PARAMS)
    scale = state[2].rest["head/kernel"][0]["scale"]
    np.testing.assert_allclose(scale, [[1.0 / 127]], rtol=0.02)


def _drops_greatest():
    from nnopt_jax.transform import wrapping

    return wrapping(
        "drops",
        "head/*",
        init=lambda leaves, start: ({}, {p: jnp.abs(x) < 1 for p, x in leaves.items()}),
        encode=lambda leaves, state, train: {
            path: Masked(leaf, state.rest[path]) for path, leaf in leaves.items()
        },
    )


def test_leaves_that_are_not_there_are_all_named():
    with pytest.raises(SelectionError) as caught:
        tie({"head/kernl": "embed/embedding", "head/kernel": "embed/embeding"}).init(PARAMS)
    assert str(caught.value) == (
        "compression.tie: 2 problems\n"
        "  there is no leaf 'head/kernl'. Did you mean head/kernel?\n"
        "  there is no leaf 'embed/embeding'. Did you mean embed/embedding?"
    )


def test_leaves_of_other_shapes_and_dtypes_are_all_named():
    params = PARAMS | {"half": EMBED.astype(jnp.bfloat16)}
    with pytest.raises(ShapeError) as caught:
        tie({"head/kernel": "embed/embedding", "half": "embed/embedding"}).init(params)
    assert str(caught.value) == (
        "compression.tie: 2 problems\n"
        "  head/kernel: is float32[16,40], and its source embed/embedding is float32[40,16]\n"
        "  half: is bfloat16[40,16], and its source embed/embedding is float32[40,16]"
    )


def test_rings_and_rows_of_ties_are_refused():
    with pytest.raises(ValueRangeError) as caught:
        tie({"a": "b", "b": "a", "c": "d"}, transpose=1)  # pyright: ignore[reportArgumentType]
    assert str(caught.value) == (
        "compression.tie: 3 problems\n"
        "  transpose=1 is neither True nor False.\n"
        "  pairs={'a': 'b'} names b as a source, which is tied itself, to a.\n"
        "  pairs={'b': 'a'} names a as a source, which is tied itself, to b."
    )
    with pytest.raises(ValueRangeError, match=r"is not a mapping \{path of a target"):
        tie({})


def test_what_an_earlier_link_made_of_the_target_is_not_dropped_in_silence():
    tx = nnopt.chain(nnopt.pruning.magnitude(0.5), TIED)
    with pytest.raises(CompositionError, match=r"head/kernel: an earlier transform made Masked\(.*"
                                               r"leave it out there with where="):  # fmt: skip
        tx.init(PARAMS)
