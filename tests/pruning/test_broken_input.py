"""Weights, gradients and schedules that are broken: seen or refused, never spread."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import ValueRangeError
from nnopt_jax.pruning import allocation, cubic

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_broken_weight_takes_no_others_with_it(bad):
    """Under LAMP, whose sums it would be in; it ranks first, where it can be seen."""
    one, other = RNG.normal(size=(2, 8, 4)).astype(np.float32)
    one[7, 3] = bad
    tx = nnopt.pruning.magnitude(0.5, allocation="lamp")
    rest = tx.init({"one": jnp.asarray(one), "other": jnp.asarray(other)}).rest
    finite = np.where(np.isfinite(one), one, 0)
    wanted = np.concatenate([allocation.lamp(jnp.asarray(x)).ravel() for x in (finite, other)])
    wanted[31] = np.inf
    kept = np.concatenate([rest[name]["mask"].ravel() for name in ("one", "other")])
    np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(np.argsort(-wanted)[:32]))


def test_a_nan_is_beyond_any_threshold():
    weights = {"kernel": jnp.array([[jnp.nan, 1.0], [1e-5, 2.0]])}
    tx = nnopt.pruning.learned_threshold()
    shown = nnopt.materialize(tx.pack(weights, tx.init(weights)))["kernel"]
    np.testing.assert_array_equal(np.isnan(shown), [[True, False], [False, False]])
    assert shown[1, 0] == 0


def test_a_gradient_of_nan_brings_no_connection_back():
    weights = {"kernel": jnp.asarray(RNG.normal(size=(8, 8)), jnp.float32)}
    tx = nnopt.pruning.rigl(0.75, end_step=100, every=1, allocation="uniform")
    state = tx.init(weights, key=jax.random.key(0))
    free = ~state.rest["kernel"]["mask"]
    slope = (
        jnp.where(free, jnp.nan, 1.0).at[np.nonzero(free)[0][-1], np.nonzero(free)[1][-1]].set(9)
    )
    _, after = tx.update(weights, state, grads=nnopt.Grads(None, {"kernel": slope}))
    came = np.asarray(after.rest["kernel"]["mask"] & free)
    assert came[np.nonzero(free)[0][-1], np.nonzero(free)[1][-1]]


def test_connections_move_once_for_each_optimizer_step():
    """Calls under accumulation repeat the number of the step."""
    weights = {"kernel": jnp.asarray(RNG.normal(size=(8, 8)), jnp.float32)}
    tx = nnopt.pruning.rigl(0.5, end_step=100, every=2, allocation="uniform")
    state, moves = tx.init(weights, key=jax.random.key(0)), []
    for number, step in enumerate((0, 0, 1, 1, 2, 2, 3)):
        before = state.rest["kernel"]["mask"]
        slope = jax.random.normal(jax.random.key(number), (8, 8))
        grads = nnopt.Grads(None, {"kernel": slope})
        weights, state = tx.update(weights, state, grads=grads, step=step)
        moves.append(bool((before != state.rest["kernel"]["mask"]).any()))
    assert moves == [False, False, False, False, True, False, False]


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (lambda count: jnp.float32(jnp.nan), "gives nan at update 0"),
        (lambda count: 0.5 + 1e-6 * count, "at update 1073741824; let it give 0 to 1"),
        (lambda count: jnp.zeros(3), r"an array of shape \(3,\)"),
        (lambda count: None, "fails at update 0: "),
        (lambda: 0.5, "fails at update 0: TypeError"),
    ],
)
@pytest.mark.parametrize("method", [nnopt.pruning.magnitude, nnopt.pruning.proximal])
def test_schedules_that_give_no_share_are_refused(method, schedule, text):
    with pytest.raises(ValueRangeError, match=text):
        method(schedule)


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.7])
def test_a_schedule_keeps_what_its_capacity_says(sparsity):
    """To the weight, where float32 and float64 round a count apart."""
    for size in (15, 25, 45):
        weights = {"kernel": jnp.asarray(RNG.normal(size=(1, size)), jnp.float32)}
        tx = nnopt.pruning.magnitude(cubic(sparsity, 1))
        state = tx.update(weights, tx.init(weights))[1]
        (room,) = tx.capacities(weights).values()
        assert int(state.rest["kernel"]["mask"].sum()) == room
        (given,) = nnopt.pruning.magnitude(sparsity).capacities(weights).values()
        assert given == room


def test_n_of_m_may_be_told_its_sparsity():
    assert nnopt.pruning.magnitude(2 / 3, pattern="1:3").name == "pruning.magnitude"
