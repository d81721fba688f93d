"""RigL and SET: one move as NumPy makes it, and what holds over many."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import StatisticsError, ValueRangeError
from nnopt_jax.pruning.regrowth import drop_and_grow
from nnopt_jax.pruning.score import draw

RNG = np.random.default_rng(0)
W = RNG.normal(size=(8, 6)).astype(np.float32)
G = RNG.normal(size=(8, 6)).astype(np.float32)
PARAMS = {"kernel": jnp.asarray(W)}
KEY = jax.random.key(3)


def _numpy_move(w, mask, score, dropped):
    """Sorts, which the library does not."""
    order = sorted(np.flatnonzero(mask), key=lambda i: (-abs(w.flat[i]), i))
    stays = set(order[: mask.sum() - dropped])
    free = [i for i in range(w.size) if i not in stays]
    grown = sorted(free, key=lambda i: (-abs(score.flat[i]), i))[:dropped]
    after = np.zeros(w.size, bool)
    after[[*stays, *grown]] = True
    return after.reshape(w.shape)


def _grads(value):
    return nnopt.Grads(train=None, dense={"kernel": jnp.asarray(value)})


def test_one_move_of_rigl():
    tx = nnopt.pruning.rigl(0.75, end_step=40, fraction=0.5, every=10, allocation="uniform")
    state = tx.init(PARAMS, key=KEY)
    old = np.asarray(state.rest["kernel"]["mask"])
    params, state = tx.update(PARAMS, state, grads=_grads(G), step=10)
    # floor(0.5 / 2 * (1 + cos(pi / 4)) * 12) = floor(5.12)
    new = _numpy_move(W, old, G, 5)
    np.testing.assert_array_equal(state.rest["kernel"]["mask"], new)
    np.testing.assert_array_equal(params["kernel"], np.where(old & new, W, 0))
    assert (new & ~old).any()


def test_one_move_of_sparse_evolution():
    tx = nnopt.pruning.sparse_evolution(0.75, fraction=0.4, every=10, allocation="uniform")
    state = tx.init(PARAMS, key=KEY)
    old, seed = (np.asarray(state.rest["kernel"][name]) for name in ("mask", "seed"))
    params, state = tx.update(PARAMS, state, step=10)
    luck = np.asarray(draw(jnp.asarray(seed), (8, 6), 10))
    new = _numpy_move(W, old, luck, 4)
    np.testing.assert_array_equal(state.rest["kernel"]["mask"], new)
    np.testing.assert_array_equal(params["kernel"], np.where(old & new, W, 0))


def test_growth_at_random_is_even():
    mask = jnp.zeros((8, 6), bool).at[0].set(True)
    w = jnp.where(mask, 1.0 + jnp.arange(48.0).reshape(8, 6), 0)

    def grown(number):
        return drop_and_grow(w, mask, draw(jnp.uint32([1, 2]), (8, 6), number), 6, jnp.int32(2))

    found = np.asarray(jax.jit(jax.vmap(grown))(jnp.arange(4000)))
    assert (found.sum((1, 2)) == 6).all()
    assert found[:, 0, 2:].all()  # the greatest stay
    counts = found.sum(0).ravel()[[0, 1, *range(6, 48)]]  # 44 free places, those dropped included
    assert (np.abs(counts - 4000 * 2 / 44) < 5 * np.sqrt(4000 * 2 / 44)).all()


@pytest.mark.parametrize(("kept", "dropped"), [(0, 0), (5, 5), (48, 20), (5, 0)])
def test_counts_hold_at_the_ends(kept, dropped):
    mask = jnp.arange(48).reshape(8, 6) < kept
    # All weights and all scores are zero: nothing tells what is there from what is not.
    moved = drop_and_grow(jnp.zeros((8, 6)), mask, jnp.zeros((8, 6)), kept, jnp.int32(dropped))
    assert int(moved.sum()) == kept


@pytest.mark.parametrize("method", ["rigl", "sparse_evolution"])
def test_invariants_over_training(method):
    """Counts stay, what is gone is zero, what comes starts at zero, gradients are the model's."""
    make = getattr(nnopt.pruning, method)
    tx = make(0.75, end_step=20, every=3, allocation="uniform")
    optimizer = optax.adam(0.1)
    params, state = PARAMS, tx.init(PARAMS, key=KEY)
    opt_state = optimizer.init(nnopt.trainable(tx, params, state))

    @jax.jit
    def step(params, state, opt_state):
        loss = lambda p: ((p["kernel"] - G) ** 2).sum()  # noqa: E731
        _, grads = nnopt.value_and_grad(loss, tx)(params, state)
        updates, opt_state = optimizer.update(
            grads.train, opt_state, nnopt.trainable(tx, params, state)
        )
        return *nnopt.step(tx, params, state, updates, grads), opt_state, grads

    masks = []
    for number in range(1, 25):
        shown, before = tx.apply(params, state)["kernel"], np.asarray(state.rest["kernel"]["mask"])
        params, state, opt_state, grads = step(params, state, opt_state)
        np.testing.assert_allclose(grads.dense["kernel"], 2 * (shown - G), rtol=1e-6)
        gradient = np.asarray(grads.train.params["kernel"])
        np.testing.assert_array_equal(gradient, np.where(before, grads.dense["kernel"], 0))
        mask = np.asarray(state.rest["kernel"]["mask"])
        assert mask.sum() == 12
        assert not np.asarray(params["kernel"])[~mask | (mask & ~before)].any()
        assert (mask != before).any() <= (number % 3 == 0 and number < 20)
        masks.append(mask)
    assert sum((a != b).any() for a, b in itertools.pairwise(masks)) >= 2
    packed = jax.jit(tx.pack)(params, state)["kernel"]
    assert packed.values.shape == (12,)
    np.testing.assert_array_equal(packed.materialize(), tx.apply(params, state)["kernel"])


def test_gradients_move_rigl_to_where_they_are():
    """The weights that matter are found, from a start that holds few of them."""
    target = np.zeros((8, 6), np.float32)
    target[2:4] = 3.0
    tx = nnopt.pruning.rigl(0.75, end_step=30, every=2, allocation="uniform")
    params, state = {"kernel": jnp.zeros((8, 6))}, tx.init(PARAMS, key=KEY)
    for _ in range(40):
        shown = tx.apply(params, state)["kernel"]
        grads = _grads(shown - target)
        updates = nnopt.Trainable({"kernel": 0.5 * (target - shown)}, {"kernel": None})
        moved = {"kernel": params["kernel"] + updates.params["kernel"]}
        params, state = tx.update(moved, state, grads=grads)
    np.testing.assert_allclose(tx.apply(params, state)["kernel"], target, atol=1e-3)


def test_erk_is_the_default():
    params = {"large": jnp.ones((16, 24)), "small": jnp.ones((4, 8))}
    for tx in (nnopt.pruning.rigl(0.9, end_step=9), nnopt.pruning.sparse_evolution(0.9)):
        counts = tx.capacities(params)
        assert counts == nnopt.pruning.magnitude(0.9, allocation="erk").capacities(params)
        assert counts["small"] / 32 > counts["large"] / 384


def test_what_is_wrong_is_told():
    rigl = nnopt.pruning.rigl(0.5, end_step=9, every=4)
    with pytest.raises(ValueRangeError, match=r"rigl: draws at random; give tx\.init\(params, key"):
        rigl.init(PARAMS)
    with pytest.raises(StatisticsError, match=r"rigl: judges by gradients.*nnopt\.step"):
        rigl.update(PARAMS, rigl.init(PARAMS, key=KEY))
    with pytest.raises(ValueRangeError) as caught:
        nnopt.pruning.rigl(lambda count: 0.5, end_step=0, fraction=2, every=1.5,
                           allocation="global")  # fmt: skip
    parts = ("sparsity", "end_step=0", "fraction=2", "every=1.5", "not one of 'uniform', 'erk'")
    assert all(part in str(caught.value) for part in parts)


def test_everything_pruned_is_zero():
    tx = nnopt.pruning.rigl(1.0, end_step=9, every=1, allocation="uniform")
    params, state = tx.update(PARAMS, tx.init(PARAMS, key=KEY), grads=_grads(G))
    assert not np.asarray(params["kernel"]).any()
    assert not np.asarray(tx.apply(params, state)["kernel"]).any()
