"""Packed leaves that are moved stay packed: every part of a node is moved by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import jax.numpy as jnp

from nnopt_jax.arrays.base import Field, Node, is_node
from nnopt_jax.arrays.bits import Bits
from nnopt_jax.arrays.codebook import Codebook
from nnopt_jax.arrays.factored import Factored
from nnopt_jax.arrays.gathered import Gathered, GatheredBlocks
from nnopt_jax.arrays.input_quantized import InputQuantized
from nnopt_jax.arrays.levels import Levels
from nnopt_jax.arrays.masked import Masked
from nnopt_jax.arrays.powers import Powers
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.arrays.sum_ import Sum
from nnopt_jax.arrays.trits import Trits
from nnopt_jax.arrays.uneven_groups import UnevenGroups
from nnopt_jax.trace.packed.deferred import Deferred
from nnopt_jax.typing import Array, Shape

SHARED: Mapping[type[Node], tuple[str, ...]] = {
    Quantized: (),
    Codebook: ("table",),
    Levels: (),
    Powers: (),
    Masked: (),
    Sum: (),
    InputQuantized: (),
}
"""Nodes whose fields lie like the weight or coarser, and the fields that are for all of it."""


def is_streamed(field: Field) -> bool:
    """Return whether each entry of an array comes from a few entries of its fields.

    Then a sum over entries reads the fields, and no array is stored for it.
    """
    if not is_node(field) or isinstance(field, Bits | Trits):
        return True
    if isinstance(field, Deferred):
        return all(map(is_streamed, field.operands))
    return type(field) in SHARED and all(is_streamed(part) for _, part in field.fields())


class Moves(Protocol):
    """How entries of a weight are moved, or looked up."""

    @property
    def shape(self) -> Shape:
        """Shape of the outcome."""
        ...

    @property
    def kept(self) -> int:
        """How many of the last axes stay the last ones, whole and in their order."""
        ...

    @property
    def axes(self) -> Shape:
        """The order of axes in the outcome, where nothing else happens; else none."""
        ...

    @property
    def fills(self) -> bool:
        """Whether the outcome has entries that are in no operand but the filler."""
        ...

    def apply(self, x: Array, shape: Shape, fill: float = 0) -> Array | None:
        """Move an array that is coarser than a weight of a shape; None where that cannot be."""
        ...


def moved(field: Field, move: Moves) -> Field | None:
    """A field or node after a movement; None where a part of it cannot follow.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nnopt_jax.arrays import Quantized
        >>> from nnopt_jax.trace.packed.rules.move import moved
        >>> from nnopt_jax.trace.packed.rules.movement import Movement
        >>> from nnopt_jax.trace.primitives import rule_of
        >>> turned = jax.make_jaxpr(jnp.transpose)(jnp.ones((4, 3))).jaxpr.eqns[0]
        >>> node = Quantized(jnp.ones((4, 3), jnp.int8), jnp.ones((1, 3)))
        >>> moved(node, Movement(turned, rule_of(turned), [None], 0))
        Quantized(codes int8[3,4], scale float32[3,1], 16 bits/weight)
    """
    if not is_node(field):
        return field
    return _moved(field, tuple(field.shape), move)


def _moved(field: Field, shape: Shape, move: Moves) -> Field | None:
    if not is_node(field):
        return move.apply(field, shape)
    if isinstance(field, Bits | Trits):
        return _packed_codes(field, shape, move)
    if isinstance(field, Factored):
        return _factors(field, move)
    if isinstance(field, Gathered | GatheredBlocks):
        return Reshaped.of(field, move.axes) if move.axes else None
    if isinstance(field, Reshaped):
        return _in_memory(field, shape, move)
    if isinstance(field, UnevenGroups):
        return _uneven(field, shape, move)
    if isinstance(field, Deferred):  # a filler would have to go through the function as well
        return None if move.fills else field.map_operands(lambda x: _moved(x, shape, move))
    if type(field) not in SHARED:
        return None
    if isinstance(field, Codebook) and field.table.ndim > 1:
        return None
    shared = SHARED[type(field)]
    parts = {name: _moved(part, shape, move) for name, part in field.fields() if name not in shared}
    return None if any(part is None for part in parts.values()) else field.replace(**parts)


def _packed_codes(field: Bits | Trits, shape: Shape, move: Moves) -> Field | None:
    """Words move where the axis that they lie along stays; else codes do, in a byte or two each."""
    if field.layout == "rows" and move.kept >= 1 and not move.fills:
        words = move.apply(field.words, (*shape[:-1], field.words.shape[-1]))
        return None if words is None else field.replace(
            words=words, shape=(*words.shape[:-1], shape[-1])
        )  # fmt: skip
    top = field.low + (2**field.width - 1 if isinstance(field, Bits) else 2)
    narrow = next(kind for kind in (jnp.int8, jnp.uint8, jnp.int16, jnp.uint16)
                  if jnp.iinfo(kind).min <= field.low and top <= jnp.iinfo(kind).max)  # fmt: skip
    return move.apply(field.materialize().astype(narrow), shape)


def _uneven(field: UnevenGroups, shape: Shape, move: Moves) -> UnevenGroups | None:
    """Groups follow where their axis stays whole: among those that are kept, or reordered."""
    axis = field.axis
    if move.axes:
        axis = move.axes.index(len(shape) + axis) - len(shape)
    elif move.kept < -axis:
        return None
    sizes = list(shape)
    sizes[field.axis] = field.values.shape[field.axis]
    values = _moved(field.values, tuple(sizes), move)
    return None if values is None else field.replace(values=values, axis=axis)


def _factors(field: Factored, move: Moves) -> Factored | None:
    """A product of factors is moved along its leading axes, or transposed."""
    swapped = move.axes[-2:] == (field.ndim - 1, field.ndim - 2)
    if move.kept < 2 and not swapped:
        return None
    u, v = (_moved(part, tuple(part.shape), move) for part in (field.u, field.v))
    if u is None or v is None:
        return None
    return field.replace(u=v, v=u) if swapped else field.replace(u=u, v=v)


def _in_memory(field: Reshaped, shape: Shape, move: Moves) -> Field | None:
    """What lies in other axes stays so where its first axis is cut, or all are permuted."""
    runs = field.runs()
    if runs is None or not field.axes:
        return None
    axes, count = field.axes, len(field.axes)
    if move.axes:
        order = tuple(axes[axis] for axis in move.axes)
        return field.replace(axes=order, sizes=tuple(shape[axis] for axis in move.axes))
    gone, lies = count - len(move.shape), tuple(field.base.shape)
    permutes = field.split == lies
    if axes[0] == 0 and runs[0] == (0,) and move.kept >= count - 1 and gone in (0, 1):
        first, rest = move.shape[: 1 - gone], tuple(a - gone for a in axes[gone:])
        base = _moved(field.base, lies, move)
        if base is None or permutes:
            return None if base is None else Reshaped.of(base, rest)
        return field.replace(
            base=base, split=(*first, *field.split[1:]), axes=rest, sizes=move.shape
        )
    return move.apply(field.materialize(), shape) if permutes else None
