"""Soft thresholds: what is shown, its gradient, and how it lies over other expressions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax.arrays import SoftThresholded, Sparse
from nnopt_jax.errors import ValueRangeError

W = np.random.default_rng(4).normal(size=(8, 5)).astype(np.float32)
PARAMS = {"kernel": jnp.asarray(W)}
SLOPES = np.random.default_rng(5).normal(size=(8, 5)).astype(np.float32)


def _soft(w, t):
    return np.sign(w) * np.maximum(np.abs(w) - t, 0)


def _level(w, kept):
    return np.sort(np.abs(w).ravel())[::-1][kept]


def _grads(tx, params, state):
    loss = lambda p: sum((x * SLOPES).sum() for x in p.values())  # noqa: E731
    return nnopt.value_and_grad(loss, tx)(params, state)[1].train


def test_shown_and_counted():
    tx = nnopt.pruning.soft_threshold(0.75)
    state = tx.init(PARAMS)
    np.testing.assert_array_equal(tx.apply(PARAMS, state)["kernel"], _soft(W, _level(W, 10)))
    packed = jax.jit(tx.pack)(PARAMS, state)["kernel"]
    assert packed.values.shape == (10,)
    np.testing.assert_array_equal(packed.materialize(), _soft(W, _level(W, 10)))


def test_parameters_stay_and_the_schedule_is_followed():
    tx = nnopt.pruning.soft_threshold(optax.linear_schedule(0.0, 0.75, 5), every=2)
    params, state = PARAMS, tx.init(PARAMS)
    for kept in (40, 28, 28, 16, 10, 10):
        params, state = tx.update(params, state)
        shown = tx.apply(params, state)["kernel"]
        np.testing.assert_array_equal(shown, _soft(W, _level(W, kept) if kept < 40 else 0))
    np.testing.assert_array_equal(params["kernel"], W)


def test_one_threshold_for_all_leaves():
    params = {"a": PARAMS["kernel"], "b": 2 * PARAMS["kernel"]}
    tx = nnopt.pruning.soft_threshold(0.5, allocation="global")
    shown = tx.apply(params, tx.init(params))
    threshold = _level(np.stack([W, 2 * W]), 40)
    for name in params:
        np.testing.assert_array_equal(shown[name], _soft(np.asarray(params[name]), threshold))


def test_gradients():
    soft, frozen = (nnopt.pruning.soft_threshold(0.75, mode=mode) for mode in ("soft", "frozen"))
    state = soft.init(PARAMS)
    beyond = np.abs(W) > _level(W, 10)
    np.testing.assert_array_equal(_grads(soft, PARAMS, state).params["kernel"], SLOPES)
    np.testing.assert_array_equal(
        _grads(frozen, PARAMS, state).params["kernel"], np.where(beyond, SLOPES, 0)
    )


@pytest.mark.parametrize(
    "before", [nnopt.quantization.uniform(4), nnopt.compression.codebook(6)], ids=lambda t: t.name
)
def test_over_codes_the_threshold_is_stored(before):
    tx = nnopt.chain(before, nnopt.pruning.soft_threshold(0.5))
    state = tx.init(PARAMS)
    packed = tx.pack(PARAMS, state)["kernel"]
    assert isinstance(packed, Sparse)
    assert isinstance(packed.values, SoftThresholded)
    coded = np.asarray(before.apply(PARAMS, state[0])["kernel"])
    expected = np.where(np.asarray(state[1].rest["kernel"]["mask"]),
                        _soft(coded, _level(coded, 20)), 0)  # fmt: skip
    np.testing.assert_array_equal(packed.materialize(), expected)
    np.testing.assert_array_equal(_grads(tx, PARAMS, state).params["kernel"], SLOPES)


def test_over_a_mask_there_is_one_mask_and_no_node():
    tx = nnopt.chain(nnopt.pruning.magnitude(0.25), nnopt.pruning.soft_threshold(0.75))
    packed = tx.pack(PARAMS, tx.init(PARAMS))["kernel"]
    assert packed.values.shape == (10,)
    np.testing.assert_array_equal(packed.materialize(), _soft(W, _level(W, 10)))


@pytest.mark.parametrize("coded", [False, True])
def test_gradient_of_a_learned_threshold(coded):
    """Against finite differences of the formula, raw and over shared values."""
    learned = nnopt.pruning.learned_threshold(start=-0.5)
    before = nnopt.compression.codebook(6)
    tx = nnopt.chain(before, learned) if coded else learned
    state = tx.init(PARAMS)
    seen = np.asarray(before.apply(PARAMS, state[0])["kernel"] if coded else W, np.float64)

    def loss(s):
        return (_soft(seen, 1 / (1 + np.exp(-s))) * SLOPES).sum()

    grads = _grads(tx, PARAMS, state)
    slope = (grads.learned[1] if coded else grads.learned)["kernel"]
    assert float(slope) == pytest.approx((loss(-0.5 + 1e-6) - loss(-0.5 - 1e-6)) / 2e-6, rel=1e-4)
    beyond = np.abs(seen) > 1 / (1 + np.exp(0.5))
    np.testing.assert_array_equal(grads.params["kernel"], np.where(beyond, SLOPES, 0))


@pytest.mark.parametrize("decay", [0.5, lambda count: 0.5 * (count < 9)])
def test_decay_raises_a_learned_threshold(decay):
    tx = nnopt.pruning.learned_threshold(start=-2.0, decay=decay)
    params, state = PARAMS, tx.init(PARAMS)
    zeros = []
    for _ in range(3):
        zeros.append(int((tx.apply(params, state)["kernel"] == 0).sum()))
        params, state = tx.update(params, state)
    assert float(state.learned["kernel"]) == -0.25
    assert zeros == [int((np.abs(W) <= 1 / (1 + np.exp(-s))).sum()) for s in (-2, -1, -0.5)]


def test_everything_pruned_is_zero():
    tx = nnopt.pruning.soft_threshold(1.0)
    packed = tx.pack(PARAMS, tx.init(PARAMS))["kernel"]
    assert packed.values.size == 0
    assert not np.asarray(packed.materialize()).any()


def test_all_problems_are_told():
    with pytest.raises(ValueRangeError) as caught:
        nnopt.pruning.soft_threshold(-1, allocation="lamp", mode="hard", every=0)
    parts = ("sparsity=-1", "allocation='lamp'", "mode='hard'", "every=0")
    assert all(part in str(caught.value) for part in parts)
    with pytest.raises(ValueRangeError) as caught:
        nnopt.pruning.learned_threshold(start=1, decay=2)
    assert all(part in str(caught.value) for part in ("start=1", "decay=2"))
