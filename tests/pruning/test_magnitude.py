"""Magnitude pruning over the steps of a loop: schedules, modes, refreshes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax.arrays import Masked

PARAMS = {"kernel": jnp.arange(1.0, 41.0).reshape(8, 5)}


def _masks(tx, steps, params=PARAMS):
    """The number kept after each update, from the state alone."""
    state, kept = tx.init(params), []
    for _ in range(steps):
        params, state = tx.update(params, state)
        kept.append(int(state.rest["kernel"]["mask"].sum()))
    return params, kept


def test_schedule_is_followed_to_the_weight():
    schedule = optax.polynomial_schedule(0.0, 0.8, 3, 6)
    _, kept = _masks(nnopt.pruning.magnitude(schedule), 8)
    shares = [0.8 - 0.8 * (1 - min(step, 6) / 6) ** 3 for step in range(1, 9)]
    assert kept == [round(40 * (1 - share)) for share in shares]


def test_masks_hold_between_refreshes():
    schedule = optax.linear_schedule(0.0, 0.5, 10)
    _, kept = _masks(nnopt.pruning.magnitude(schedule, every=4), 12)
    assert kept == [40, 40, 40, 32, 32, 32, 32, 24, 24, 20, 20, 20]


@pytest.mark.parametrize("arrival", [5, 6, 7])
def test_final_sparsity_is_in_force_at_once(arrival):
    schedule = optax.linear_schedule(0.0, 0.5, arrival)
    _, kept = _masks(nnopt.pruning.magnitude(schedule, every=5), arrival)
    assert kept[-1] == 20
    assert kept[-2] > 20


def test_schedule_outside_its_range_on_its_way_is_clipped():
    _, kept = _masks(nnopt.pruning.magnitude(lambda count: 2.0 * (count == 2)), 2)
    assert kept == [40, 0]


def test_steps_of_accumulation_do_not_advance_the_schedule():
    tx = nnopt.pruning.magnitude(optax.linear_schedule(0.0, 0.8, 4))
    state, params = tx.init(PARAMS), PARAMS
    for step, kept in ((1, 32), (1, 32), (1, 32), (2, 24)):
        params, state = tx.update(params, state, step=step)
        assert int(state.rest["kernel"]["mask"].sum()) == kept


def test_hard_mode_zeroes_the_parameters():
    tx = nnopt.pruning.magnitude(0.5)
    params, _ = tx.update(PARAMS, tx.init(PARAMS))
    np.testing.assert_array_equal(params["kernel"].ravel()[:20], 0)
    np.testing.assert_array_equal(params["kernel"].ravel()[20:], PARAMS["kernel"].ravel()[20:])


def test_hard_mode_costs_nothing_in_the_forward_pass():
    tx = nnopt.pruning.magnitude(0.5)
    state = tx.init(PARAMS)
    trained = jax.make_jaxpr(lambda p: nnopt.materialize(tx.encode(p, state, train=True)))(PARAMS)
    assert not trained.eqns


def test_soft_mode_lets_weights_return():
    tx = nnopt.pruning.magnitude(0.5, mode="soft")
    params, state = tx.update(PARAMS, tx.init(PARAMS))
    np.testing.assert_array_equal(params["kernel"], PARAMS["kernel"])
    assert tx.apply(params, state)["kernel"][0, 0] == 0
    grown = {"kernel": params["kernel"].at[0, 0].set(99.0)}
    grown, state = tx.update(grown, state)
    assert tx.apply(grown, state)["kernel"][0, 0] == 99


def test_soft_gradient_is_that_of_the_dense_weight():
    tx = nnopt.pruning.magnitude(0.5, mode="soft")
    slopes = jnp.linspace(-1, 1, 40).reshape(8, 5)
    _, grads = nnopt.value_and_grad(lambda p: (p["kernel"] * slopes).sum(), tx)(
        PARAMS, tx.init(PARAMS)
    )
    np.testing.assert_array_equal(grads.train.params["kernel"], slopes)


def test_hard_gradient_behind_another_link_is_masked():
    tx = nnopt.chain(nnopt.quantization.uniform(8), nnopt.pruning.magnitude(0.5))
    state = tx.init(PARAMS)
    slopes = jnp.linspace(1, 2, 40).reshape(8, 5)
    _, grads = nnopt.value_and_grad(lambda p: (p["kernel"] * slopes).sum(), tx)(PARAMS, state)
    mask = tx.encode(PARAMS, state)["kernel"].mask
    np.testing.assert_array_equal(grads.train.params["kernel"], np.where(mask, slopes, 0))


def test_pruning_twice_stores_one_mask():
    tx = nnopt.chain(nnopt.pruning.magnitude(0.25), nnopt.pruning.magnitude(0.75))
    state = tx.init(PARAMS)
    packed = tx.pack(PARAMS, state)["kernel"]
    assert packed.values.shape == (10,)
    assert not isinstance(packed.values, Masked)
    compiled = jax.jit(tx.pack)(PARAMS, state)["kernel"]
    np.testing.assert_array_equal(compiled.materialize(), packed.materialize())


def test_capacities_are_those_at_the_end_of_the_schedule():
    tx = nnopt.pruning.magnitude(optax.linear_schedule(0.0, 0.9, 10))
    assert tx.capacities(PARAMS) == {"kernel": 4}
    assert nnopt.pruning.magnitude(0.5, allocation="global").capacities(PARAMS) == {}


def test_vectors_are_left_alone_unless_named():
    params = {"bias": jnp.arange(4.0), "kernel": jnp.ones((2, 2))}
    assert list(nnopt.pruning.magnitude(0.5).init(params).rest) == ["kernel"]
    named = nnopt.pruning.magnitude(0.5, where="bias")
    np.testing.assert_array_equal(named.apply(params, named.init(params))["bias"], [0, 0, 2, 3])
