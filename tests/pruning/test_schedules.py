"""Schedules of sparsity, by their formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import ValueRangeError
from nnopt_jax.recipe import Call
from nnopt_jax.recipe.resolver import call

COUNTS = np.arange(60)


def test_cubic_is_that_of_optax():
    ours = nnopt.pruning.cubic(0.9, 30, begin=7, initial=0.2)
    theirs = optax.polynomial_schedule(0.2, 0.9, 3, 30, 7)
    np.testing.assert_allclose(
        [ours(count) for count in COUNTS], [theirs(count) for count in COUNTS], atol=1e-6
    )


def test_iterative_prunes_the_same_share_of_what_is_left():
    schedule = nnopt.pruning.iterative(0.9, rounds=4, steps=10, begin=5)
    left = 1 - np.array([float(schedule(count)) for count in COUNTS])
    np.testing.assert_allclose(left[:15], 1)
    for end in (15, 25, 35, 45):
        assert left[end] / left[end - 1] == pytest.approx(0.1**0.25, rel=1e-5)
        np.testing.assert_array_equal(left[end : end + 10], left[end])
    assert left[-1] == pytest.approx(0.1, abs=1e-7)


@pytest.mark.parametrize(
    "schedule",
    [
        nnopt.pruning.cubic(0.95, 10),
        nnopt.pruning.one_shot(0.95, 10),
        nnopt.pruning.iterative(0.95, 5, 2),
        nnopt.pruning.iterative(1.0, 5, 2),
    ],
    ids=["cubic", "one_shot", "iterative", "everything"],
)
def test_ends_are_exact_and_compiled_is_eager(schedule):
    with jax.numpy_dtype_promotion("strict"):
        eager = [schedule(count) for count in (0, 3, 10, 11, 2**30)]
        compiled = [jax.jit(schedule)(jnp.int32(count)) for count in (0, 3, 10, 11, 2**30)]
    assert float(eager[0]) == 0
    assert float(eager[2]) == float(eager[-1])
    assert float(eager[-1]) in (np.float32(0.95), 1)
    assert {x.dtype for x in eager} == {np.dtype("float32")}
    np.testing.assert_allclose(eager, compiled, rtol=1e-6)


def test_masks_change_at_the_ends_of_rounds_only():
    """Weights that reverse their order in each step would change a mask that is chosen anew."""
    tx = nnopt.pruning.magnitude(nnopt.pruning.iterative(0.75, 2, 3), every=3, mode="soft")
    params = {"w": jnp.arange(1.0, 9.0).reshape(2, 4)}
    state, masks = tx.init(params), []
    for _ in range(9):
        params = {"w": 9 - params["w"]}
        _, state = tx.update(params, state)
        masks.append(np.asarray(state.rest["w"]["mask"]).ravel())
    assert [int(mask.sum()) for mask in masks] == [8, 8, 4, 4, 4, 2, 2, 2, 2]
    assert all((masks[i] == masks[i - 1]).all() for i in (1, 3, 4, 6, 7))


def test_recipes_name_them():
    made = call(Call("nnopt_jax.pruning:cubic", {"sparsity": 0.5, "steps": "60%"}), "x", 100)
    assert float(made(59)) < 0.5 == float(made(60))


def test_bad_arguments():
    with pytest.raises(ValueRangeError, match=r"(?s)4 problems.*sparsity=2.*steps=0.*begin=-1.*in"):
        nnopt.pruning.cubic(2, 0, -1, 1.5)
    with pytest.raises(ValueRangeError, match=r"(?s)2 problems.*rounds=0.*steps=2.5"):
        nnopt.pruning.iterative(0.5, 0, 2.5)
    with pytest.raises(ValueRangeError, match="sparsity=<function"):
        nnopt.pruning.one_shot(nnopt.pruning.cubic(0.5, 3), 3)
