"""Blocks of which the last one along an axis is shorter, against loops in NumPy."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from nnopt_jax.ops.block_formats import block_mean, q4_0_step
from nnopt_jax.ops.blockwise import reduce_blocks, repeat_uneven
from nnopt_jax.ops.range_search import mse_range, percentile_range

X = np.random.default_rng(0).normal(3, 1, (5, 7)).astype(np.float32)  # a zero would win each min
MASK = np.random.default_rng(1).random(X.shape) < 0.7
BLOCKS = [(2, 1), (5, 3), (4, 4), (1, 7), (3, 7)]


def blocks_of(x: np.ndarray, block: tuple[int, int]) -> list[list[np.ndarray]]:
    rows, columns = (range(0, n, size) for n, size in zip(x.shape, block, strict=True))
    return [[x[i : i + block[0], j : j + block[1]] for j in columns] for i in rows]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", ["min", "max", "mean"])
def test_a_shorter_last_block_is_reduced_by_itself(name, block):
    found = reduce_blocks("demo", lambda v, axes: getattr(jnp, name)(v, axis=axes), X, block)
    wanted = [[getattr(np, name)(part) for part in row] for row in blocks_of(X, block)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("block", BLOCKS)
def test_values_are_repeated_along_uneven_axes_only(block):
    counts = [-(-n // size) for n, size in zip(X.shape, block, strict=True)]
    values = np.arange(np.prod(counts)).reshape(counts)
    found = repeat_uneven(jnp.asarray(values), X.shape, block)
    coarse = [axis for axis in (0, 1) if X.shape[axis] % block[axis] == 0]
    assert [found.shape[axis] for axis in coarse] == [counts[axis] for axis in coarse]
    whole = np.asarray(found)
    for axis in coarse:
        whole = np.repeat(whole, block[axis], axis)
    for at in itertools.product(*map(range, X.shape)):
        assert whole[at] == values[at[0] // block[0], at[1] // block[1]]


def test_means_and_steps_of_shorter_blocks():
    kept = block_mean(-X, (3, 1), MASK)
    wanted = [
        [part[mask].mean() if mask.any() else 0 for part, mask in zip(row, masks, strict=True)]
        for row, masks in zip(blocks_of(X, (3, 1)), blocks_of(MASK, (3, 1)), strict=True)
    ]
    np.testing.assert_allclose(kept, wanted, rtol=1e-6)
    wanted = [[part.ravel()[np.abs(part).argmax()] / -8 for part in row]
              for row in blocks_of(X, (2, 3))]  # fmt: skip
    np.testing.assert_array_equal(q4_0_step(X, (2, 3)), wanted)


def test_ranges_of_shorter_blocks():
    _, top = percentile_range(X, (3, 1), 70.0, mask=MASK)
    for row, masks, tops in zip(blocks_of(X, (3, 1)), blocks_of(MASK, (3, 1)), top, strict=True):
        for part, mask, found in zip(row, masks, tops, strict=True):
            ranked = np.sort(np.abs(part[mask]))[::-1]
            beyond = round(0.3 * len(ranked))
            assert found == (ranked[beyond] if len(ranked) else 0)
    whole = [mse_range(X[i : i + 3], 3, (X[i : i + 3].shape[0], 1))[1] for i in (0, 3)]
    np.testing.assert_array_equal(mse_range(X, 3, (3, 1))[1], np.concatenate(whole))
