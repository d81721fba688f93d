"""Reductions over the blocks of an array, and repetition of block values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from nnopt_jax.errors import Problems, ShapeError


def reduce_blocks(
    who: str,
    reduce: Callable[[Array, tuple[int, ...]], Array],
    x: ArrayLike,
    block: Sequence[int],
) -> Array:
    """Reduce each block of an array to one number; the last block of an axis may be shorter.

    Args:
        who: the caller, for errors.
        reduce: `(array, axes) -> array` without these axes.
        x: any array.
        block: size of a block along each axis, at most the size of the axis.

    Returns:
        An array of shape `ceil(x.shape[i] / block[i])`; an empty axis counts as one block.

    Raises:
        ShapeError: if a block is larger than its axis.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.arange(10).reshape(5, 2)
        >>> print(reduce_blocks("demo", jnp.max, x, (2, 1)))
        [[2 3]
         [6 7]
         [8 9]]
    """
    x, block = jnp.asarray(x), tuple(block)
    problems = Problems(who)
    if len(block) != x.ndim:
        problems.add("", f"block {block} for an array of shape {x.shape}; give one size an axis")
        problems.raise_as(ShapeError)
    for axis, (size, part) in enumerate(zip(x.shape, block, strict=True)):
        if part != size and (part < 1 or part > size > 0):
            problems.add("", f"block {part} does not fit axis {axis} of size {size}")
    problems.raise_as(ShapeError)
    return _reduce(reduce, x, block)


def _reduce(
    reduce: Callable[[Array, tuple[int, ...]], Array], x: Array, block: tuple[int, ...]
) -> Array:
    for axis, (size, part) in enumerate(zip(x.shape, block, strict=True)):
        if part and (rest := size % part):
            # The last block is reduced separately rather than padded, because no padding value is
            # neutral for every reduction.
            even = lax.slice_in_dim(x, 0, size - rest, axis=axis)
            last = lax.slice_in_dim(x, size - rest, size, axis=axis)
            short = (*block[:axis], rest, *block[axis + 1 :])
            parts = [_reduce(reduce, even, block), _reduce(reduce, last, short)]
            return lax.concatenate(parts, axis)
    counts = [1 if n == b else n // b for n, b in zip(x.shape, block, strict=True)]
    split, axes = _split(x.shape, counts)
    return reduce(x.reshape(split), axes).reshape(counts)


def repeat_uneven(values: Array, shape: Sequence[int], block: Sequence[int]) -> Array:
    """Repeat block values along the axes whose last block is shorter, and only along those.

    Args:
        values: the result of `reduce_blocks`.
        shape: the shape of the array that was reduced.
        block: size of a block along each axis.

    Example:
        >>> print(repeat_uneven(jnp.array([[1, 2, 3], [4, 5, 6]]), (4, 5), (2, 2)))
        [[1 1 2 2 3]
         [4 4 5 5 6]]
    """
    for axis, (size, part) in enumerate(zip(shape, block, strict=True)):
        if part and size % part:
            values = lax.slice_in_dim(jnp.repeat(values, part, axis), 0, size, axis=axis)
    return values


def fill_up(x: Array, block: Sequence[int]) -> Array:
    """Pad each axis with zeros so that all blocks are equally long.

    Example:
        >>> fill_up(jnp.array([1, 2, 3]), (2,))
        Array([1, 2, 3, 0], dtype=int32)
    """
    more = [-size % part if part else 0 for size, part in zip(x.shape, block, strict=True)]
    return jnp.pad(x, [(0, n) for n in more]) if any(more) else x


def _split(shape: tuple[int, ...], counts: Sequence[int]) -> tuple[list[int], tuple[int, ...]]:
    """Split each axis into (blocks, block); return the new shape and the block axes."""
    split, axes = [], []
    for size, count in zip(shape, counts, strict=True):
        split += [count, size // count if count else 1]
        axes.append(len(split) - 1)
    return split, tuple(axes)
