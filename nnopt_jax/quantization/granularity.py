"""Granularity: which weights share a scale, those of a tensor, a channel or a group."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import jax

from nnopt_jax.arrays.nodes import Field, Node
from nnopt_jax.arrays.refinement import Slot
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.arrays.scales import UnevenGroups
from nnopt_jax.ops.axis_roles import Axes, matrix_axes
from nnopt_jax.ops.blockwise import repeat_uneven
from nnopt_jax.ops.grid import expand
from nnopt_jax.settings import Settings, is_whole

Granularity: TypeAlias = Literal["tensor", "channel"] | int
"""`"tensor"`: one scale for each index of the batch axes. `"channel"`: one for each index of the
output and batch axes. A number: groups of this many entries along the contracted axes, flattened in
their order, of which the last may be shorter. Arrays of one axis get one scale.
"""


@dataclasses.dataclass(frozen=True)
class Blocked:
    """An array whose entries share scales block by block.

    Args:
        array: a slot or, if groups run across its axes, its matrix `(*batch, in, out)`.
        block: the size of a block along each axis of the array; the last block may be shorter.
        mask: bool, of the shape of the array, the entries that determine scales; None for all.
        axes: the axes of the array; None if they are unknown.
        leaf: axes and shape of the slot, if the array is its matrix; None if the array is the slot.

    Example:
        >>> import jax.numpy as jnp
        >>> part = Blocked(jnp.ones((5, 2)), (2, 1))
        >>> part.expand(jnp.arange(6.0).reshape(3, 2))[:, 0]
        Array([0., 0., 2., 2., 4.], dtype=float32)
    """

    array: jax.Array
    block: tuple[int, ...]
    mask: jax.Array | None = None
    axes: Axes | None = None
    leaf: tuple[Axes, tuple[int, ...]] | None = None

    def expand(self, scale: jax.Array) -> jax.Array:
        """Repeat the scale of each block for all of its entries, in the shape of the array."""
        return expand(repeat_uneven(scale, self.array.shape, self.block), self.array.shape)

    def field(self, scale: Field) -> Field:
        """Return scales as a quantized node stores them; None stays None."""
        return scale if scale is None else UnevenGroups.of(scale, self.array.shape, self.block)

    def in_place(self, node: Node) -> Node:
        """Return the node that replaces the slot, given the node of the blocked array."""
        if self.leaf is None:
            return node
        axes, shape = self.leaf
        return Reshaped(node, tuple(shape[axis] for axis in axes.order), axes.inverse, shape)


@dataclasses.dataclass(frozen=True)
class Sharing:
    """The rule that says which weights of a slot share a scale, given its axes.

    Args:
        granularity: see `Granularity`.
        axis: the channel axis; None for the output and batch axes.
        even: whether the format requires groups of equal size.

    Example:
        >>> import jax.numpy as jnp
        >>> slot = Slot("", jnp.ones((128, 8, 16)), "value", None, Axes(0, (1, 2)))
        >>> Sharing("channel").blocked(slot).block, Sharing(64).blocked(slot).block
        ((128, 1, 1), (64, 1, 1))
    """

    granularity: Granularity
    axis: int | None = None
    even: bool = False

    def needs_axes(self, slot: Slot) -> bool:
        """Whether the blocks of a slot depend on its axes."""
        return slot.array.ndim > 1 and self.granularity != "tensor" and self.axis is None

    def misfit(self, slot: Slot) -> str | None:
        """Return why a slot cannot be divided into blocks; None if it can."""
        shape, axes = slot.array.shape, slot.axes
        if len(shape) < 2:
            return None
        if axes is not None and (text := axes.misfit(shape)):
            return f"{text}; give each of its axes one role"
        if self.axis is not None and not -len(shape) <= self.axis < len(shape):
            return f"axis {self.axis} is not one of the axes of shape {shape}"
        if isinstance(self.granularity, str) or axes is None or not self.even:
            return None
        size = math.prod(shape[axis] for axis in axes.contracted)
        if size % self.granularity == 0:
            return None
        along = "axis" if len(axes.contracted) == 1 else "axes"
        where = f"{along} {', '.join(map(str, axes.contracted))} of shape {shape}"
        return (
            f"groups of {self.granularity} do not divide {where}, and its format holds whole "
            f"groups only; give a group that divides {size}"
        )

    def blocked(self, slot: Slot) -> Blocked:
        """Return the array to quantize, and its blocks.

        Args:
            slot: a slot for which `misfit` is None.
        """
        shape, axes, mask = slot.array.shape, slot.axes, slot.mask
        if len(shape) < 2 or isinstance(self.granularity, str) or axes is None:
            return Blocked(slot.array, self._whole(shape, axes), mask, axes)
        block = group_block(shape, axes.contracted, self.granularity)
        if block is not None:
            return Blocked(slot.array, block, mask, axes)
        matrix = axes.to_matrix(slot.array)
        block = (*(1 for _ in axes.batch), min(self.granularity, matrix.shape[-2]), 1)
        mask = None if mask is None else axes.to_matrix(mask)
        return Blocked(matrix, block, mask, matrix_axes(matrix.ndim), (axes, shape))

    def _whole(self, shape: tuple[int, ...], axes: Axes | None) -> tuple[int, ...]:
        """Return the block sizes of the granularities `"tensor"` and `"channel"`."""
        apart: tuple[int, ...] = ()
        if len(shape) > 1 and axes is not None:
            apart = axes.batch
        if len(shape) > 1 and self.granularity == "channel":
            assert self.axis is not None or axes is not None
            channels = (*apart, *axes.output) if axes is not None else ()
            apart = channels if self.axis is None else (self.axis % len(shape),)
        return tuple(1 if axis in apart else size for axis, size in enumerate(shape))


def group_block(
    shape: Sequence[int], contracted: Sequence[int], group: int
) -> tuple[int, ...] | None:
    """Return the block sizes of a group along flattened axes; None if it is not a block.

    Args:
        shape: the shape of the weight.
        contracted: the axes along which groups run, flattened in this order.
        group: the number of entries of a group.

    Returns:
        The size along each axis: all of the inner axes, and a divisor of the next one, or any size
        for the outermost axis, since its last group may be shorter.

    Example:
        >>> [group_block((8, 16, 64), (0, 1), group) for group in (8, 48, 24)]
        [(1, 8, 1), (3, 16, 1), None]
    """
    block = [1] * len(shape)
    left = group
    for place in reversed(range(len(contracted))):
        axis, outer = contracted[place], contracted[:place]
        size, others = shape[axis], math.prod(shape[a] for a in outer)
        if left >= size * others:  # one group holds all remaining entries
            for a in (axis, *outer):
                block[a] = max(shape[a], 1)
            break
        if others == 1 or size % left == 0:
            block[axis] = left
            left = 1
        elif left % size == 0:
            block[axis] = size
            left //= size
        else:
            return None
    return tuple(block)


def sharing(
    settings: Settings,
    granularity: Granularity | None,
    group: int | None,
    axis: int | None,
    *,
    default: Granularity,
    even: bool = False,
) -> Sharing:
    """Parse the granularity settings of a method, and collect problems with them.

    Args:
        settings: the settings of the method, which collect problems.
        granularity: see `Granularity`; None if the caller did not set it.
        group: entries of a group; None if the caller did not set it.
        axis: see `Sharing`.
        default: the granularity if neither is set.
        even: see `Sharing`.

    Example:
        >>> from nnopt_jax.settings import Settings
        >>> settings = Settings("demo")
        >>> sharing(settings, None, 64, None, default="tensor").granularity
        64
        >>> found = sharing(settings, 32, None, None, default="tensor")
        >>> settings.done()
        Traceback (most recent call last):
        nnopt_jax.errors.ValueRangeError: demo: granularity=32 is a number of entries; write group=32.
    """  # noqa: E501 - printed by the doctest
    if is_whole(granularity):
        text = f"is a number of entries; write group={granularity}."
        settings.wrong("granularity", granularity, text)
    elif granularity is not None:
        settings.choice("granularity", granularity, ("tensor", "channel"))
    settings.integer("group", group, 1, none=True)
    if group is not None and granularity is not None:
        settings.wrong("group", group, f"is given beside granularity={granularity!r}; give "
                                       f"group={group!r} alone.")  # fmt: skip
    found = group if group is not None else default if granularity is None else granularity
    settings.integer("axis", axis, -32, 31, none=True)
    if axis is not None and found != "channel":
        settings.wrong("axis", axis, "goes only with granularity='channel'; leave it out.")
    return Sharing(found, axis, even)
