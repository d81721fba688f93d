"""Products with codes whose scales differ along the axis that is summed over."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from nnopt_jax.arrays.base import show
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.trace.packed.rules.contraction import Contraction, Dense
from nnopt_jax.typing import Array


def grouped(x: Array, weight: Quantized, how: Contraction) -> Array:
    r"""`sum_g s_gj sum_{i in g} x_i q_ij`: a product for each group, then one over groups.

    The products of all groups are in memory together, so it pays for rows that are fewer than a
    group has entries; beyond that the dense weight is smaller.

    Raises:
        Dense: it does not pay, or the groups are no plain ones.
    """
    groups, axis, at = _groups(weight, how)
    rows = [n for i, n in enumerate(x.shape) if i in how.left_free(x.ndim)]
    if weight.zero is not None:
        raise Dense("it has zero points in groups")
    count = 1
    for n in rows:
        count *= n
    if count * groups > weight.shape[axis]:
        raise Dense("there are more rows than entries in a group, for which dense is cheaper")
    x_split = _split(x, how.left[at], groups)
    codes = _split(show(weight.codes).astype(weight.dtype), axis, groups)
    apart = _with_groups(how, at)
    out = apart(x_split, codes)  # (groups, batch, free x, free w)
    shape, ndim = codes.shape, out.ndim
    scale = show(weight.scale)
    scale = scale.reshape(*scale.shape[:axis], groups, 1, *scale.shape[axis + 1 :])
    scaled = out.astype(jnp.float32) * apart.over_weight(scale, shape, ndim)
    return scaled.sum(0).astype(out.dtype)


def _groups(weight: Quantized, how: Contraction) -> tuple[int, int, int]:
    """How many groups there are, along which axis, and which one that is of those summed over."""
    sizes = show(weight.scale).shape
    split = [(at, axis) for at, axis in enumerate(how.right) if sizes[axis] != 1]
    if len(split) != 1 or sizes[split[0][1]] == weight.shape[split[0][1]]:
        raise Dense("its scales differ along the axes that are summed over")
    ((at, axis),) = split
    return sizes[axis], axis, at


def _split(x: Array, axis: int, groups: int) -> Array:
    return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])


def _with_groups(how: Contraction, at: int) -> Contraction:
    """The contraction of both operands after their axes are split: groups go along, first."""
    left, right = how.left[at], how.right[at]

    def moved(axes: tuple[int, ...], split: int) -> tuple[int, ...]:
        return tuple(axis + (axis >= split) for axis in axes)

    settings = how.settings
    if settings.get("preferred_element_type") is None:
        settings = settings | {"preferred_element_type": jnp.float32}
    return dataclasses.replace(
        how,
        left=moved(how.left, left),
        right=moved(how.right, right),
        left_batch=(left, *moved(how.left_batch, left)),
        right_batch=(right, *moved(how.right_batch, right)),
        settings=settings,
    )
