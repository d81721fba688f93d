"""Rewinding, alone and in chains with pruning."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import SelectionError, ValueRangeError

ROUNDS, STEPS = 2, 3
START = np.array([[4.0, -3.0, 2.0, 1.0], [0.5, -0.7, 0.1, 6.0]], np.float32)
MOVES = np.random.default_rng(2).normal(scale=2, size=(10, 2, 4)).astype(np.float32)
SCHEDULE = nnopt.pruning.iterative(0.75, ROUNDS, STEPS)
BOTH = {"pruned first": (0, 1), "rewound first": (1, 0)}


def _run(tx, steps=10):
    """The parameters after each update, moved by fixed steps; a bias moves by one each."""
    params = {"bias": jnp.zeros(2), "kernel": jnp.asarray(START)}
    state = tx.init(params)
    for step in range(steps):
        params = {"bias": params["bias"] + 1, "kernel": params["kernel"] + MOVES[step]}
        params, state = tx.update(params, state)
        yield params, state


def _lottery(to):
    """The same in NumPy: prune by trained weights at a round's end, go back one step later."""
    weights, mask = START.copy(), np.ones(START.shape, bool)
    saved = START.copy()
    for step in range(1, 11):
        weights = np.where(mask, weights + MOVES[step - 1], 0)
        if step == to:
            saved = weights.copy()
        if step in (3, 6):
            order = np.argsort(-np.abs(weights).ravel(), kind="stable")
            mask = np.isin(np.arange(8), order[: 4 if step == 3 else 2]).reshape(2, 4)
            weights = np.where(mask, weights, 0)
        if step in (4, 7):
            weights = np.where(mask, saved, 0)
        yield weights


@pytest.mark.parametrize("to", [0, 2])
@pytest.mark.parametrize("order", BOTH)
def test_iterative_pruning_with_rewinding(order, to):
    links = (nnopt.pruning.magnitude(SCHEDULE, every=STEPS),
             nnopt.pruning.rewind(ROUNDS, STEPS, to=to))  # fmt: skip
    tx = nnopt.chain(*(links[i] for i in BOTH[order]))
    found = zip(_run(tx), _lottery(to), strict=True)
    for step, ((params, state), weights) in enumerate(found, 1):
        np.testing.assert_array_equal(params["kernel"], weights)
        np.testing.assert_array_equal(tx.apply(params, state)["kernel"], weights)
        trained = nnopt.materialize(tx.encode(params, state, train=True))
        np.testing.assert_array_equal(trained["kernel"], weights)
        since = step - 4 if step < 7 else step - 7
        bias = step if step < 4 else to + since  # never pruned, and rewound all the same
        np.testing.assert_array_equal(params["bias"], bias)


def test_a_soft_mask_hides_weights_that_go_back_as_well():
    magnitude = nnopt.pruning.magnitude(SCHEDULE, every=STEPS, mode="soft")
    tx = nnopt.chain(magnitude, nnopt.pruning.rewind(ROUNDS, STEPS))
    params, _ = list(_run(tx, 4))[-1]
    np.testing.assert_array_equal(params["kernel"], START)


def test_behind_a_quantizer_the_parameters_go_back():
    tx = nnopt.chain(nnopt.quantization.uniform(4), nnopt.pruning.rewind(1, STEPS))
    params, _ = list(_run(tx, 4))[-1]
    np.testing.assert_array_equal(params["kernel"], START)


def test_compiled_is_eager():
    tx = nnopt.chain(
        nnopt.pruning.magnitude(SCHEDULE, every=STEPS), nnopt.pruning.rewind(ROUNDS, STEPS)
    )
    params = {"bias": jnp.zeros(2), "kernel": jnp.asarray(START)}

    def one(carry, move):
        params, state = carry
        params = {"bias": params["bias"] + 1, "kernel": params["kernel"] + move}
        return tx.update(params, state), None

    (scanned, _), _ = jax.jit(lambda c: jax.lax.scan(one, c, MOVES))((params, tx.init(params)))
    eager, _ = list(_run(tx))[-1]
    jax.tree.map(np.testing.assert_array_equal, scanned, eager)


def test_only_the_leaves_that_are_asked_for():
    tx = nnopt.pruning.rewind(1, STEPS, where="kernel")
    params, state = list(_run(tx, 4))[-1]
    assert list(state.rest) == ["kernel"]
    np.testing.assert_array_equal(params["bias"], 4)
    with pytest.raises(SelectionError, match="for a leaf 'kernel'"):
        tx.update({"bias": params["bias"]}, state)


def test_steps_of_accumulation_count_once():
    tx = nnopt.pruning.rewind(1, 1)
    params = {"w": jnp.zeros((1, 1))}
    state, seen = tx.init(params), []
    for step in (1, 1, 2, 3):
        params, state = tx.update({"w": params["w"] + 1}, state, step=step)
        seen.append(float(params["w"][0, 0]))
    assert seen == [1, 2, 0, 1]


def test_bad_settings():
    with pytest.raises(ValueRangeError, match=r"(?s)3 problems.*rounds=0.*begin=-1.*to=5 is not a"):
        nnopt.pruning.rewind(0, 4, -1, to=5)
    with pytest.raises(ValueRangeError, match="steps='3'"):
        nnopt.pruning.rewind(1, "3")
