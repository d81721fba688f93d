"""Random masks: counts, chances, keys, and nesting under a schedule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import nnopt_jax as nnopt
from nnopt_jax.errors import ValueRangeError

KEY = jax.random.key(5)
PARAMS = {"large": jnp.ones((8, 12)), "small": jnp.ones((4, 8))}


def _masks(tx, params=PARAMS, key=KEY):
    return {path: np.asarray(r["mask"]) for path, r in tx.init(params, key=key).rest.items()}


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({"sparsity": 0.75}, {"large": 24, "small": 8}),
        # Of 128 weights 32 stay: densities e (8 + 12) / 96 and e (4 + 8) / 32.
        ({"sparsity": 0.75, "allocation": "erk"}, {"large": 20, "small": 12}),
        ({"pattern": "1:4"}, {"large": 24, "small": 8}),
        ({"sparsity": 0.75, "pattern": (4, 2)}, {"large": 24, "small": 8}),
    ],
)
def test_counts(settings, counts):
    tx = nnopt.pruning.random_mask(**settings)
    assert {path: mask.sum() for path, mask in _masks(tx).items()} == counts
    assert tx.capacities(PARAMS) == counts


def test_patterns_hold():
    one_of_four = _masks(nnopt.pruning.random_mask(pattern="1:4"))["large"]
    assert (one_of_four.reshape(2, 4, 12).sum(1) == 1).all()
    blocks = _masks(nnopt.pruning.random_mask(0.75, pattern=(4, 2)))["large"]
    assert set(blocks.reshape(2, 4, 6, 2).sum((1, 3)).ravel()) == {0, 8}


@pytest.mark.parametrize(
    ("settings", "kept", "size"),
    [
        ({"sparsity": 0.75}, 24, 96),
        ({"sparsity": 0.75, "allocation": "global"}, 32, 128),
        ({"pattern": "1:4"}, None, None),
    ],
)
def test_every_weight_has_the_same_chance(settings, kept, size):
    tx = nnopt.pruning.random_mask(**settings)
    draws = 2000
    masks = jax.jit(jax.vmap(lambda key: tx.init(PARAMS, key=key).rest["large"]["mask"]))
    found = np.asarray(masks(jax.random.split(jax.random.key(1), draws)))
    # 96 weights: a count beyond five standard deviations happens to one in 18,000 such tests.
    assert (np.abs(found.sum(0) - draws / 4) < 5 * np.sqrt(draws * 3 / 16)).all()
    if kept is not None:  # two weights of one row stay together as often as without replacement
        pairs = int((found[:, :, :6] & found[:, :, 6:]).sum())
        together = kept / size * (kept - 1) / (size - 1)
        assert stats.binomtest(pairs, draws * 48, together).pvalue > 1e-4


def test_global_counts_hold_in_total_only():
    tx = nnopt.pruning.random_mask(0.75, allocation="global")
    counts = [tuple(m.sum() for m in _masks(tx, key=jax.random.key(i)).values()) for i in range(9)]
    assert {sum(pair) for pair in counts} == {32}
    assert len(set(counts)) > 1


def test_a_leaf_keeps_its_mask_when_others_come_and_go():
    tx = nnopt.pruning.random_mask(0.75)
    alone = _masks(tx, {"small": PARAMS["small"]})["small"]
    np.testing.assert_array_equal(_masks(tx)["small"], alone)
    twins = _masks(tx, {"a": jnp.ones((8, 12)), "b": jnp.ones((8, 12))})
    assert (twins["a"] != twins["b"]).any()
    assert (_masks(tx, key=jax.random.key(6))["small"] != alone).any()
    # Another kind of key is as good.
    assert _masks(tx, key=jax.random.key(5, impl="rbg"))["small"].sum() == 8


def test_masks_of_a_schedule_are_nested_and_arrive():
    tx = nnopt.pruning.random_mask(optax.linear_schedule(0.0, 0.75, 4), allocation="global")
    params, state = PARAMS, tx.init(PARAMS, key=KEY)
    before = {path: np.ones(leaf.shape, bool) for path, leaf in PARAMS.items()}
    for keeps in (104, 80, 56, 32, 32):
        params, state = tx.update(params, state)
        masks = {path: np.asarray(rest["mask"]) for path, rest in state.rest.items()}
        assert sum(mask.sum() for mask in masks.values()) == keeps
        for path, mask in masks.items():
            assert not (mask & ~before[path]).any()
            np.testing.assert_array_equal(params[path] != 0, mask)
        before = masks


def test_a_number_holds_no_random_numbers_in_its_state():
    state = nnopt.pruning.random_mask(0.5).init(PARAMS, key=KEY)
    assert [leaf.dtype.name for leaf in jax.tree.leaves(state.rest["small"])] == ["bool", "float32"]


def test_what_is_wrong_is_told():
    with pytest.raises(ValueRangeError, match=r"random_mask: draws .* give tx\.init\(params, key="):
        nnopt.pruning.random_mask(0.5).init(PARAMS)
    with pytest.raises(ValueRangeError) as caught:
        nnopt.pruning.random_mask(1.5, allocation="lamp", mode="sotf", every=0)
    text = str(caught.value)
    assert all(part in text for part in ("lamp", "1.5", "Did you mean soft?", "every=0"))
