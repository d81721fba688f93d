"""Arrays that golden files hold, drawn with fixed seeds by NumPy, whose draws do not change.

All numbers are such that the dense array is the same on every machine: sums are of numbers that
float32 holds exactly, all else is rounded once.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays import Quantized

SHAPE = (16, 24)
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = (-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class Draws:
    """Arrays drawn with a fixed seed by NumPy."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def floats(self, *shape: int, dtype: Any = np.float32) -> Any:
        """Normal numbers."""
        return jnp.asarray(self.rng.normal(size=shape or SHAPE).astype(dtype))

    def scales(self, *shape: int, dtype: Any = np.float32) -> Any:
        """Numbers from 0.01 to 0.1."""
        return jnp.asarray(self.rng.uniform(0.01, 0.1, shape or (1, SHAPE[1])).astype(dtype))

    def eighths(self, *shape: int) -> Any:
        """Multiples of 1/8 from -2 to 2, of which float32 holds long sums of products."""
        return jnp.asarray((self.rng.integers(-16, 17, shape or SHAPE) / 8).astype(np.float32))

    def codes(self, low: int, high: int, *shape: int) -> Any:
        """Integers as float32, as in training."""
        drawn = self.rng.integers(low, high + 1, shape or SHAPE)
        return jnp.asarray(drawn.astype(np.float32))

    def indices(self, count: int, *shape: int, dtype: Any = np.int32) -> Any:
        """Integers below a number."""
        return jnp.asarray(self.rng.integers(0, count, shape or SHAPE).astype(dtype))

    def mask(self, share: float, *shape: int) -> Any:
        """Truth values, of which so many are True."""
        return jnp.asarray(self.rng.random(shape or SHAPE) < share)

    def table(self, count: int, dtype: Any = np.float32) -> Any:
        """Ascending numbers."""
        return jnp.asarray(np.sort(self.rng.normal(size=count)).astype(dtype))

    def n_of_m(self, n: int, m: int, *shape: int) -> Any:
        """A mask that keeps n of every m along the axis before the last."""
        *outer, inputs, outputs = shape or SHAPE
        ranks = self.rng.random((*outer, inputs // m, m, outputs)).argsort(-2).argsort(-2)
        return jnp.asarray((ranks < n).reshape(shape or SHAPE))

    def blocks(self, share: float, sizes: tuple[int, int]) -> Any:
        """A mask of whole blocks."""
        grid = self.rng.random((SHAPE[0] // sizes[0], SHAPE[1] // sizes[1])) < share
        return jnp.asarray(np.kron(grid, np.ones(sizes, bool)))

    def int4(self, **fields: Any) -> Quantized:
        """A grid of 4 bits and one scale an output, whose values are multiples of 1/8."""
        scale = jnp.full((1, SHAPE[1]), 0.125)
        return Quantized(self.codes(-7, 7), scale, low=-7, high=7, **fields)
