"""Reductions of equal blocks of an array."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from nnopt_jax.errors import Problems, ShapeError


def reduce_blocks(
    who: str,
    reduce: Callable[[Array, tuple[int, ...]], Array],
    x: ArrayLike,
    block: Sequence[int],
) -> Array:
    """Reduces each block of an array to one number.

    Args:
        who: the caller, as errors name it.
        reduce: `(array, axes) -> array` without these axes.
        x: any array.
        block: size of a block along each axis, which it divides.

    Returns:
        An array of shape `x.shape[i] // block[i]`; an empty axis that makes one block counts as 1.

    Raises:
        ShapeError: if a block does not divide its axis.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.arange(8).reshape(4, 2)
        >>> print(reduce_blocks("demo", jnp.max, x, (2, 1)))
        [[2 3]
         [6 7]]
    """
    x, block = jnp.asarray(x), tuple(block)
    problems = Problems(who)
    if len(block) != x.ndim:
        problems.add("", f"block {block} for an array of shape {x.shape}; give one size an axis")
        problems.raise_as(ShapeError)
    for axis, (size, part) in enumerate(zip(x.shape, block, strict=True)):
        if part != size and (part < 1 or size % part):
            problems.add("", f"block {part} does not divide axis {axis} of size {size}")
    problems.raise_as(ShapeError)
    counts = [1 if n == b else n // b for n, b in zip(x.shape, block, strict=True)]
    split, axes = _split(x.shape, counts)
    return reduce(x.reshape(split), axes).reshape(counts)


def _split(shape: tuple[int, ...], counts: Sequence[int]) -> tuple[list[int], tuple[int, ...]]:
    """Splits each axis in (blocks, block); also tells the block axes."""
    split, axes = [], []
    for size, count in zip(shape, counts, strict=True):
        split += [count, size // count if count else 1]
        axes.append(len(split) - 1)
    return split, tuple(axes)
