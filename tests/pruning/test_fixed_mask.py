"""`every=None`: the first mask stays, whatever the weights become."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import ValueRangeError


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_mask_of_init_stays(mode, allocation):
    start = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    kept = np.abs(start) > np.sort(np.abs(start).ravel())[19]
    tx = nnopt.pruning.magnitude(0.5, mode=mode, allocation=allocation, every=None)
    params = {"kernel": start}
    state = tx.init(params)
    expected = start

    @jax.jit
    def step(params, state, updates):
        return nnopt.step(tx, params, state, updates)

    for _ in range(3):
        # Large moves that reverse the order of magnitudes.
        move = (4 * np.sign(expected) - 2 * expected).astype(np.float32)
        updates = nnopt.trainable(tx, {"kernel": move}, state)
        params, state = step(params, state, updates)
        expected = expected + move
        if mode == "hard":
            expected = np.where(kept, expected, np.float32(0))
        np.testing.assert_array_equal(params["kernel"], expected)
    shown = tx.apply(params, state)["kernel"]
    np.testing.assert_array_equal(shown, np.where(kept, expected, 0))
    assert int(state.count) == 3


def test_fixed_mask_refuses_a_schedule():
    with pytest.raises(ValueRangeError, match="every=None"):
        nnopt.pruning.magnitude(optax.constant_schedule(0.5), every=None)
