"""Products with codes whose scales differ along the axis that is summed over."""

from __future__ import annotations

import dataclasses
import math

from nnopt_jax.arrays.base import show
from nnopt_jax.arrays.uneven_groups import UnevenGroups
from nnopt_jax.ops.blocks import fill_up
from nnopt_jax.trace.packed.rules.contraction import Contraction, Dense
from nnopt_jax.typing import Array


def grouped(x: Array, values: Array, scale: Array, how: Contraction) -> Array:
    r"""`sum_g s_gj sum_{i in g} x_i v_ij`: a product for each group, then one over groups.

    The products of all groups are in memory together, so it pays for rows that are fewer than a
    group has entries; beyond that the dense weight is smaller.

    Args:
        x: the array.
        values: of the weight, before they are scaled.
        scale: of the weight's rank, its entries along the axes that are summed over, too.
        how: the product.

    Raises:
        Dense: it does not pay, or each entry has a scale of its own.
    """
    split = [at for at, axis in enumerate(how.right) if scale.shape[axis] != 1]
    groups = math.prod(scale.shape[how.right[at]] for at in split)
    inner = math.prod(values.shape[axis] for axis in how.right)
    rows = math.prod(x.shape[i] for i in how.left_free(x.ndim))
    if groups == inner:
        raise Dense("its scales differ along the axes that are summed over")
    if rows * groups > inner:
        raise Dense("there are more rows than entries in a group, for which dense is cheaper")
    for at in split:  # groups become axes that go along, before all others
        axis = how.right[at]
        count = scale.shape[axis]
        x, values = _split(x, how.left[at], count), _split(values, axis, count)
        scale, how = _split(scale, axis, count), _with_groups(how, at)
    out = how.wide(x, values)  # (groups, batch, free x, free w)
    out = out * how.over_weight(scale, values.shape, out.ndim)
    return out.sum(tuple(range(len(split)))).astype(how.dtype(x))


def filled_up(
    x: Array, values: Array, field: UnevenGroups, how: Contraction
) -> tuple[Array, Array, Array]:
    """Append zeros to both operands, so that the last group is as long as the others.

    Args:
        x: the array.
        values: of the weight, before they are scaled.
        field: the scales; those of the array where groups run along an axis that is not summed
            over.
        how: the product.

    Returns:
        The array, the values, and the scale, as `grouped` takes them.
    """
    axis = values.ndim + field.axis
    if axis not in how.right or isinstance(field.values, UnevenGroups):
        return x, values, field.materialize()
    block = [1] * values.ndim
    block[axis] = field.group
    along = [1] * x.ndim
    along[how.left[how.right.index(axis)]] = field.group
    return fill_up(x, along), fill_up(values, block), show(field.values)


def _split(x: Array, axis: int, groups: int) -> Array:
    return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])


def _with_groups(how: Contraction, at: int) -> Contraction:
    """The contraction of both operands after their axes are split: groups go along, first."""
    left, right = how.left[at], how.right[at]

    def moved(axes: tuple[int, ...], split: int) -> tuple[int, ...]:
        return tuple(axis + (axis >= split) for axis in axes)

    return dataclasses.replace(
        how,
        left=moved(how.left, left),
        right=moved(how.right, right),
        left_batch=(left, *moved(how.left_batch, left)),
        right_batch=(right, *moved(how.right_batch, right)),
    )
