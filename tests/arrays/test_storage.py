"""From training form to storage form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnopt_jax.arrays import (
    Codebook,
    Masked,
    Quantized,
    SoftThresholded,
    Sparse,
    materialize,
    store,
)
from nnopt_jax.errors import CapacityError

VALUES = jnp.arange(1.0, 13.0).reshape(3, 4)
MASK = VALUES % 3 == 0


def test_arrays_and_structure_stay():
    tree = {"a": [VALUES, None], "b": (jnp.int32(3),)}
    stored = store(tree)
    assert jax.tree.structure(stored) == jax.tree.structure(tree)
    assert stored["a"][0] is VALUES


def test_known_capacity_is_enough_under_jit():
    stored = jax.jit(store)({"w": Masked(VALUES, MASK, capacity=4)})["w"]
    assert isinstance(stored, Sparse)
    np.testing.assert_array_equal(stored.values, [3, 6, 9, 12])
    np.testing.assert_array_equal(stored.materialize(), np.where(MASK, VALUES, 0))


def test_unknown_capacity_is_an_error_under_jit():
    with pytest.raises(CapacityError, match="w: how many values are kept depends on data"):
        jax.jit(store)({"w": Masked(VALUES, MASK)})


def test_capacities_reach_masks_inside():
    leaf = Quantized(Masked(VALUES, MASK), jnp.ones((1, 1)))
    stored = jax.jit(lambda x: store({"w": x}, capacities={"w": 6}))(leaf)["w"]
    assert stored.codes.values.shape == (6,)
    np.testing.assert_array_equal(stored.materialize(), np.where(MASK, VALUES, 0))


@pytest.mark.parametrize("kept", [0, 12])
def test_nothing_kept_and_all_kept(kept):
    mask = jnp.full((3, 4), kept == 12)
    for inner in (VALUES, Codebook(jnp.zeros((3, 4), jnp.uint8), jnp.array([7.0]))):
        stored = Masked(inner, mask).store()
        wanted = np.where(mask, materialize(inner), 0)
        np.testing.assert_array_equal(stored.materialize(), wanted)


def test_scales_and_zero_points_survive_a_mask_at_any_granularity():
    scale = jnp.linspace(0.1, 1, 6).reshape(3, 2)
    grid = Quantized(VALUES, scale, jnp.full((3, 2), 2.0), low=-128)
    leaf = Masked(grid, MASK)
    stored = leaf.store()
    assert stored.values.scale.shape == (3, 2)
    np.testing.assert_array_equal(stored.materialize(), leaf.materialize())


def test_a_mask_below_a_node_is_not_cut_by_the_mask_above():
    """Where the node keeps zeros the masks are merged; elsewhere the outer one lies beside."""
    inner, outer = Masked(VALUES, VALUES % 3 > 0), VALUES > 4
    merged = Masked(SoftThresholded(inner, jnp.float32(5.5)), outer)
    stored = merged.store()
    assert stored.values.values.shape == (5,)
    np.testing.assert_array_equal(stored.materialize(), merged.materialize())
    shifted = Masked(Quantized(inner, jnp.ones((1, 1)), jnp.full((1, 1), 2.0)), outer)
    stored = shifted.store()
    np.testing.assert_array_equal(stored.materialize(), shifted.materialize())
    assert float(stored.materialize()[1, 1]) == -2  # a code of zero is not a zero
