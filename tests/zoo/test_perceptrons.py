"""The activations of `quantized_mlp` lie on grids, whichever way those are found."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from nnopt_jax.zoo.perceptrons import quantized_mlp


@pytest.mark.parametrize("kind", ["dynamic", "ema", "lsq", "pact"])
def test_a_row_of_activations_has_few_values(kind):
    model = quantized_mlp(kind, bits=3, hidden=(64,), classes=2)
    images = jax.random.uniform(jax.random.key(0), (5, 4, 4, 1))
    variables = model.init(jax.random.key(1), images)
    variables |= model.apply(variables, images, train=True, mutable=["ranges"])[1]
    _, seen = model.apply(variables, images, capture_intermediates=True, mutable=["intermediates"])
    (rounded,) = seen["intermediates"]["relu1"]["__call__"]
    for row in np.asarray(rounded):
        assert row.min() == 0
        assert len(np.unique(row)) <= 8
    if kind != "pact":  # its level of clipping, 10, is far above
        assert len(np.unique(rounded)) > 4


def test_averaged_ranges_move_in_training_only():
    model = quantized_mlp("ema", hidden=(8,), classes=2)
    images = jax.random.uniform(jax.random.key(0), (5, 4, 4, 1))
    variables = model.init(jax.random.key(1), images)
    before = jax.tree.leaves(variables["ranges"])
    _, still = model.apply(variables, images, mutable=["ranges"])
    _, moved = model.apply(variables, images, train=True, mutable=["ranges"])
    np.testing.assert_array_equal(jax.tree.leaves(still), before)
    assert np.count_nonzero(np.subtract(jax.tree.leaves(moved), before)) == 2  # low stays 0
