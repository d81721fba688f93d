"""Products with a reshaped view of a weight, rewritten as products with the stored weight."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

from nnopt_jax.arrays.products.contraction import Contraction
from nnopt_jax.typing import Array

Change = Callable[[Array], Array]
Runs = tuple[tuple[int, ...], ...]


def with_base(
    runs: Runs | None, shape: Sequence[int], ndim: int, how: Contraction
) -> tuple[Change, Contraction, Change] | None:
    r"""Rewrite a product with a view as a product with the base of the view.

    A query kernel `(in, heads, head_dim)` that is stored as a matrix `(in, heads * head_dim)` is
    multiplied as that matrix, and the axes of the outcome are split. For an output kernel, the axes
    of the array are merged.

    Args:
        runs: for each axis of the base, the axes of the view that it is split into, in order.
        shape: the shape of the view.
        ndim: the rank of the array that the view is multiplied with.
        how: the product with the view.

    Returns:
        A change of the array, the product with the base, and a change of its outcome. None if an
        axis of the base is contracted only in part.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays.products.contraction import Contraction
        >>> from nnopt_jax.arrays.products.view_product import with_base
        >>> x, matrix = jnp.ones((5, 8)), jnp.ones((8, 6))
        >>> query = Contraction((1,), (0,), (), ())
        >>> inputs, there, outputs = with_base(((0,), (1, 2)), (8, 3, 2), 2, query)
        >>> outputs(there(inputs(x), matrix)).shape
        (5, 3, 2)
    """
    if runs is None:
        return None
    free = how.free(len(shape))
    right, batch, own = (_axes_within(runs, role) for role in (how.right, how.right_batch, free))
    # An axis of size 1 that the view does not have is a free axis.
    own = tuple(sorted((*own, *(base for base, run in enumerate(runs) if not run))))
    if len(right) + len(batch) + len(own) != len(runs):
        return None
    left, left_batch = _axis_map(how.right, how.left), _axis_map(how.right_batch, how.left_batch)
    groups = [[left_batch[axis] for axis in runs[base]] for base in batch]
    groups += [[axis] for axis in how.left_free(ndim)]
    groups += [[left[axis] for axis in runs[base]] for base in right]
    there = dataclasses.replace(how, right=right, right_batch=batch)
    inputs: Change = lambda x: x  # noqa: E731 - the array stays where axes are but permuted
    if any(len(group) != 1 for group in groups):
        inputs = lambda x: _merge_axes(x, groups)  # noqa: E731
        first = range(len(groups) - len(right), len(groups))
        there = dataclasses.replace(there, left=tuple(first), left_batch=tuple(range(len(batch))))
    found = [axis for base in batch for axis in runs[base]]
    mine = [axis for base in own for axis in runs[base]]

    def outputs(out: Array) -> Array:
        rows = out.shape[len(batch) : out.ndim - len(own)]
        split = out.reshape(*(shape[a] for a in found), *rows, *(shape[a] for a in mine))
        before = len(found) + len(rows)
        return split.transpose((
            *(found.index(axis) for axis in how.right_batch),
            *range(len(found), before),
            *(before + mine.index(axis) for axis in free),
        ))  # fmt: skip

    return inputs, there, outputs


def _axes_within(runs: Runs, role: Sequence[int]) -> tuple[int, ...]:
    """Return the axes of the base that are split only into view axes of the given role."""
    whole = [base for base, run in enumerate(runs) if run and set(run) <= set(role)]
    return tuple(sorted(whole, key=lambda base: role.index(runs[base][0])))


def _axis_map(ours: Sequence[int], theirs: Sequence[int]) -> dict[int, int]:
    return dict(zip(ours, theirs, strict=True))


def _merge_axes(x: Array, groups: Sequence[Sequence[int]]) -> Array:
    """Flatten each group of axes to one axis."""
    sizes = [math.prod(x.shape[axis] for axis in group) for group in groups]
    return x.transpose(tuple(itertools.chain(*groups))).reshape(sizes)
