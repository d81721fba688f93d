"""Products with codes whose scales differ along the axis that is summed over."""

from __future__ import annotations

import dataclasses
import math

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
        Dense: it does not pay, or the groups are no plain ones.
    """
    split = [(at, axis) for at, axis in enumerate(how.right) if scale.shape[axis] != 1]
    if len(split) != 1 or scale.shape[split[0][1]] == values.shape[split[0][1]]:
        raise Dense("its scales differ along the axes that are summed over")
    ((at, axis),) = split
    groups = scale.shape[axis]
    rows = math.prod(x.shape[i] for i in how.left_free(x.ndim))
    if rows * groups > values.shape[axis]:
        raise Dense("there are more rows than entries in a group, for which dense is cheaper")
    apart, values = _with_groups(how, at), _split(values, axis, groups)
    out = apart.wide(_split(x, how.left[at], groups), values)  # (groups, batch, free x, free w)
    scale = scale.reshape(*scale.shape[:axis], groups, 1, *scale.shape[axis + 1 :])
    return (out * apart.over_weight(scale, values.shape, out.ndim)).sum(0).astype(how.dtype(x))


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
