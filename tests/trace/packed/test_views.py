"""Movements of coarse arrays are those of the arrays that they stand for."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nnopt_jax.trace.packed.rules.view import cut, expanded, paired, reshaped, squeezed, transposed

SHAPE = (4, 1, 6, 8)
FULL = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
VIEWS = {
    "transpose": (transposed(SHAPE, (2, 0, 1, 3)), lambda x: x.transpose(2, 0, 1, 3)),
    "transpose last": (transposed(SHAPE, (3, 2, 1, 0)), lambda x: x.transpose(3, 2, 1, 0)),
    "squeeze": (squeezed(SHAPE, (1,)), lambda x: x.squeeze(1)),
    "expand": (
        expanded(SHAPE, (4, 1, 1, 6, 8), (0, 1, 3, 4)), lambda x: np.expand_dims(x, 2)
    ),
    "slice": (
        cut(SHAPE, (2, 1, 6, 3), lambda x, axis: lax.slice_in_dim(x, 1, 4 if axis else 3, 1, axis)),
        lambda x: x[1:3, :, :, 1:4],
    ),
    "merge": (reshaped(SHAPE, (4, 48)), lambda x: x.reshape(4, 48)),
    "split": (reshaped(SHAPE, (2, 2, 6, 8)), lambda x: x.reshape(2, 2, 6, 8)),
    "flatten": (reshaped(SHAPE, (192,)), lambda x: x.reshape(192)),
}  # fmt: skip
COARSE = [(1, 1, 1, 1), (4, 1, 1, 1), (1, 1, 6, 8), (1, 1, 1, 8), (4, 1, 6, 1), SHAPE]


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("sizes", COARSE, ids=str)
def test_what_is_coarse_moves_as_the_whole_or_is_refused(name, sizes):
    view, moves = VIEWS[name]
    coarse = FULL[tuple(slice(size) for size in sizes)]
    wanted = moves(np.broadcast_to(coarse, SHAPE))
    assert view.shape == wanted.shape
    found = view.apply(jnp.asarray(coarse), SHAPE)
    if found is None:
        # Refused is only what merges an axis of one entry with one of several, or splits it.
        assert name in ("merge", "split", "flatten")
        assert sizes != SHAPE
        return
    np.testing.assert_array_equal(np.broadcast_to(found, wanted.shape), wanted)


def test_the_last_axes_that_stay_are_counted():
    kept = {name: view.kept for name, (view, _) in VIEWS.items()}
    assert kept == {"transpose": 1, "transpose last": 0, "squeeze": 2, "expand": 2, "slice": 0,
                    "merge": 0, "split": 2, "flatten": 0}  # fmt: skip


def test_axes_are_paired_as_finely_as_can_be():
    assert paired((8, 6, 5), (8, 30)) == [([0], [0]), ([1, 2], [1])]
    assert paired((2, 3), (3, 2)) == [([0, 1], [0, 1])]
    assert paired((4,), (4, 1)) == [([0], [0]), ([], [1])]
    assert paired((0, 3), (3, 0)) == [([0, 1], [0, 1])]
