"""What a loss returns is what a batch on one device would give, or is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nnopt_jax import parallel
from nnopt_jax.errors import CompositionError
from tests.parallel import networks

PARAMS = {"w": jnp.full(2, 3.0)}


def first(loss, accumulate=4, optimizer=None, **options):
    """What the first step returns beside its state, and the state."""
    plan = networks.plan({"data": 2}, PARAMS)
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer
    run = parallel.train_step(loss, optimizer, plan=plan, accumulate=accumulate, **options)
    state, found = run(run.init(PARAMS), jnp.arange(8.0))
    return found, state


def test_what_is_true_of_some_micro_batches_is_a_share():
    def loss(params, batch):
        return params["w"].sum(), {"first": batch[0] < 0.5, "rows": jnp.int32(batch.size)}

    (_, aux), _ = first(loss, has_aux=True)
    assert aux == {"first": 0.25, "rows": 2.0}
    (_, aux), _ = first(loss, accumulate=1, has_aux=True)
    assert aux == {"first": True, "rows": 8}


@pytest.mark.parametrize("weight", [True, 1, np.float16(1)])
def test_weights_of_any_dtype_are_numbers(weight):
    value, _ = first(lambda p, x: parallel.Weighted(p["w"].sum(), jnp.asarray(weight)))
    assert value == 6.0


@pytest.mark.parametrize(
    ("loss", "has_aux", "text"),
    [
        (lambda p, x: parallel.Weighted(p["w"].sum(), 1.0), True, "return the pair (value, aux)"),
        (lambda p, x: p["w"].sum(), True, "returned float32[] in place|return the pair"),
        (lambda p, x: (p["w"].sum(), 1.0), False, "for its value; give a scalar"),
        (lambda p, x: p["w"], False, "float32[2] for its value; give a scalar"),
        (lambda p, x: parallel.Weighted(p["w"].sum(), x), False, "float32[2] for its weight"),
        (lambda p, x: (p["w"].sum(), jax.random.key(0)), True, "a PRNG key in aux"),
    ],
)
def test_what_is_no_loss_is_refused(loss, has_aux, text):
    with pytest.raises(CompositionError) as error:
        first(loss, has_aux=has_aux)
    assert any(part in str(error.value) for part in text.split("|"))


def test_optimizers_that_look_at_the_loss_are_given_it():
    halve = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=1e-4)
    plan = networks.plan({"data": 2}, PARAMS)
    optimizer = optax.chain(optax.sgd(0.0), halve)
    run = parallel.train_step(lambda p, x: p["w"].sum(), optimizer, plan=plan)
    state = run.init(PARAMS)
    for _ in range(2):  # the loss does not fall
        state, _ = run(state, jnp.arange(8.0))
    assert state.opt_state[1].scale == 0.5
