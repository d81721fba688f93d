"""Proximal pruning: exact shares, the path of the penalty, and what stays deleted."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax.arrays import Masked, Sparse
from nnopt_jax.errors import ShapeError, ValueRangeError

W = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
SHAPE = {"kernel": (8, 5)}
RAMP = optax.linear_schedule(0.0, 0.75, 4)


def _run(tx, steps, move=lambda w, step: w):
    params, state = {"kernel": jnp.asarray(W)}, tx.init({"kernel": jnp.asarray(W)})
    seen = []
    for step in range(steps):
        params, state = tx.update({"kernel": move(params["kernel"], step)}, state)
        seen.append(np.asarray(params["kernel"]))
    return seen, state


def _soft(w, t):
    return np.sign(w) * np.maximum(np.abs(w) - t, 0)


def test_without_a_gradient_l1_follows_its_path():
    """Many small steps together are the one step of the final share."""
    seen, _ = _run(nnopt.pruning.proximal(RAMP), 6)
    levels = np.sort(np.abs(W).ravel())[::-1]
    for step, w in enumerate(seen, start=1):
        keep = round(40 * (1 - 0.75 * min(step, 4) / 4))
        np.testing.assert_allclose(w, _soft(W, levels[keep] if keep < 40 else 0), atol=1e-6)
        assert (w != 0).sum() == keep


def test_deleted_weights_stay_deleted():
    seen, _ = _run(nnopt.pruning.proximal(RAMP), 6, lambda w, step: w + 3.0 * (w == 0))
    for before, after in itertools.pairwise(seen):
        assert not after[before == 0].any()


def test_until_arrival_weights_may_return():
    """One step of ISTA: the threshold is that of all weights, those that were zero as well."""
    jump = jnp.asarray(np.random.default_rng(1).normal(size=(8, 5)), jnp.float32)
    tx = nnopt.pruning.proximal(RAMP, delete="on_arrival")
    seen, _ = _run(tx, 6, lambda w, step: w + jump)
    moved = seen[0] + np.asarray(jump)
    threshold = np.sort(np.abs(moved).ravel())[::-1][25]
    np.testing.assert_allclose(seen[1], _soft(moved, threshold), atol=1e-6)
    assert ((seen[0] == 0) & (seen[1] != 0)).any()
    for w in seen[4:]:
        np.testing.assert_array_equal(w == 0, seen[3] == 0)


def test_hoyer_keeps_the_norm_and_spares_large_weights():
    seen, _ = _run(nnopt.pruning.proximal(RAMP, penalty="hoyer"), 4)
    for w in seen:
        assert np.linalg.norm(w) == pytest.approx(np.linalg.norm(W), rel=1e-5)
    assert np.abs(seen[-1]).max() > np.abs(W).max()
    assert (seen[-1] != 0).sum() == 10


@pytest.mark.parametrize(
    ("groups", "axes"), [("outputs", 0), ("inputs", 1), ((4, 1), None)], ids=str
)
def test_group_lasso_takes_whole_groups(groups, axes):
    tx = nnopt.pruning.proximal(0.5, penalty="group_lasso", groups=groups)
    (w,), state = _run(tx, 1)
    norms = np.sqrt((W**2).mean(axes, keepdims=True)) if axes is not None else np.repeat(
        np.sqrt((W.reshape(2, 4, 5) ** 2).mean(1)), 4, 0)  # fmt: skip
    level = np.broadcast_to(norms, W.shape)
    ranked = np.unique(norms)[::-1]
    threshold = ranked[round(len(ranked) * 0.5)]
    expected = np.where(level > threshold, W * (1 - threshold / level), 0)
    np.testing.assert_allclose(w, expected, atol=1e-6)
    packed = jax.jit(tx.pack)({"kernel": w}, state)["kernel"]
    assert packed.values.shape == ((expected != 0).sum(),)


def test_one_threshold_for_all_leaves():
    params = {"a": jnp.asarray(W), "b": 2 * jnp.asarray(W)}
    tx = nnopt.pruning.proximal(0.5, allocation="global")
    moved, _ = tx.update(params, tx.init(params))
    threshold = np.sort(np.abs([W, 2 * W]).ravel())[::-1][40]
    for name, w in params.items():
        np.testing.assert_allclose(moved[name], _soft(np.asarray(w), threshold), atol=1e-6)


def test_proximal_step_waits_for_its_turn():
    seen, _ = _run(nnopt.pruning.proximal(RAMP, every=3), 4)
    np.testing.assert_array_equal(seen[1], seen[0])  # the first update always chooses
    assert [(w != 0).sum() for w in seen] == [32, 32, 18, 10]


def test_everything_deleted_is_zero():
    tx = nnopt.pruning.proximal(1.0, penalty="hoyer")
    (w,), state = _run(tx, 1)
    assert not w.any()
    assert tx.pack({"kernel": w}, state)["kernel"].values.size == 0


def test_what_an_earlier_link_encoded_is_masked_and_not_moved():
    tx = nnopt.chain(nnopt.quantization.uniform(8), nnopt.pruning.proximal(0.5))
    params = {"kernel": jnp.asarray(W)}
    moved, state = tx.update(params, tx.init(params))
    np.testing.assert_array_equal(moved["kernel"], W)
    encoded = tx.encode(moved, state)["kernel"]
    assert isinstance(encoded, Masked)
    assert isinstance(tx.pack(moved, state)["kernel"], Sparse)
    assert int((encoded.materialize() == 0).sum()) >= 20


def test_all_problems_are_told():
    with pytest.raises(ValueRangeError) as caught:
        nnopt.pruning.proximal(
            2, penalty="l2", groups="rows", allocation="lamp", delete="late", every=0
        )
    text = str(caught.value)
    for part in (
        "sparsity=2",
        "penalty='l2'",
        "groups='rows'",
        "allocation='lamp'",
        "delete=",
        "every",
    ):
        assert part in text
    tx = nnopt.pruning.proximal(0.5, penalty="group_lasso", groups=(3, 1))
    with pytest.raises(ShapeError, match=r"kernel: blocks of \(3, 1\) do not divide"):
        tx.init({"kernel": jnp.zeros((8, 5))})
