"""Products with codes whose scales differ by groups of a contracted axis."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from nnopt_jax.arrays.base import show
from nnopt_jax.arrays.hooks import CannotStayPacked, Field
from nnopt_jax.arrays.uneven_groups import UnevenGroups
from nnopt_jax.ops.blockwise import fill_up
from nnopt_jax.typing import Array, Shape

if TYPE_CHECKING:
    from nnopt_jax.arrays.products.contraction import Contraction


def grouped_product(x: Array, values: Array, scale: Array, field: Field, how: Contraction) -> Array:
    r"""Multiply group by group and sum: `sum_g s_gj sum_{i in g} x_i v_ij`.

    The products of all groups are in memory together, so it is used only for fewer rows than a
    group has entries; with more rows the dense weight is smaller.

    Args:
        x: the array.
        values: the values of the weight before scaling.
        scale: the scale, of the weight's rank, with several entries on contracted axes.
        field: the scale as the node holds it.
        how: the product.

    Raises:
        CannotStayPacked: there are too many rows, or each entry has a scale of its own.
    """
    if isinstance(field, UnevenGroups):
        x, values, scale = _filled_up(x, values, field, how)
    split = [at for at, axis in enumerate(how.right) if scale.shape[axis] != 1]
    groups = math.prod(scale.shape[how.right[at]] for at in split)
    inner = math.prod(values.shape[axis] for axis in how.right)
    rows = math.prod(x.shape[i] for i in how.left_free(x.ndim))
    if groups == inner:
        raise CannotStayPacked("its scales differ along the axes that are summed over")
    if rows * groups > inner:
        raise CannotStayPacked(
            "there are more rows than entries in a group, for which dense is cheaper"
        )
    for at in split:  # groups become batch axes, before all others
        axis = how.right[at]
        count = scale.shape[axis]
        x, values = _split(x, how.left[at], count), _split(values, axis, count)
        scale, how = _split(scale, axis, count), _with_groups(how, at)
    out = how.wide(x, values)  # (groups, batch, free x, free w)
    out = out * how.over_weight(scale, values.shape, out.ndim)
    return out.sum(tuple(range(len(split)))).astype(how.dtype(x))


def _filled_up(
    x: Array, values: Array, field: UnevenGroups, how: Contraction
) -> tuple[Array, Array, Array]:
    """Append zeros to both operands so that the last group is as long as the others.

    If the groups are on an axis that is not contracted, the operands stay as they are.
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
    """Return the contraction after the split, with groups as the first batch axis."""
    left, right = how.left[at], how.right[at]

    def moved(axes: Shape, split: int) -> Shape:
        return tuple(axis + (axis >= split) for axis in axes)

    return dataclasses.replace(
        how,
        left=moved(how.left, left),
        right=moved(how.right, right),
        left_batch=(left, *moved(how.left_batch, left)),
        right_batch=(right, *moved(how.right_batch, right)),
    )
