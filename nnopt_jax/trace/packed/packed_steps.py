"""Execution of one step of a program on packed leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from nnopt_jax.arrays.hooks import CannotStayPacked, Moves, after, cast, dot, join, move, times
from nnopt_jax.arrays.masked import zero_outside
from nnopt_jax.arrays.products.contraction import Contraction
from nnopt_jax.arrays.products.special_products import Convolution, Ragged
from nnopt_jax.trace.jaxpr import Equation, bind, primitives
from nnopt_jax.trace.packed.packed_leaf import PackedLeaf, as_array, defer, is_leaf, unpack
from nnopt_jax.trace.packed.packed_movement import Movement, movements_of
from nnopt_jax.trace.primitives import TABLE, Kind, OpRule, Table
from nnopt_jax.trace.primitives.primitive_names import ragged_dot_general_p
from nnopt_jax.typing import Array, Shape

FILL = lax.GatherScatterMode.FILL_OR_DROP
"""The gather mode in which rows out of bounds get the program's fill value, by default NaN."""


def step(equation: Equation, values: list[Any], table: Table = TABLE) -> list[Any]:
    """Compute one step that has packed operands.

    Args:
        equation: the step.
        values: its operands, arrays and at least one `PackedLeaf`.
        table: the rules of the primitives.

    Returns:
        For each outcome a `PackedLeaf` if it stays packed, else an array.

    Raises:
        CannotStayPacked: the leaf must be materialized for this step.
    """
    try:
        return _packed_step(equation, values, table)
    except CannotStayPacked as reason:
        # The node has computed the outcome in another way, so there is nothing to defer.
        if reason.instead is not None:
            raise
        operands = [x.node if is_leaf(x) else x for x in values]
        later = defer(equation, table.rule_of(equation), operands)
        if later is None:
            raise
        return [PackedLeaf(later, _joint_path(values))]


def _joint_path(values: Sequence[Any]) -> str:
    """Return the paths of all packed leaves among some values, joined by "and"."""
    return " and ".join(dict.fromkeys(x.path for x in values if is_leaf(x)))


def _packed_step(equation: Equation, values: list[Any], table: Table) -> list[Any]:
    """Compute a step on codes, scales and the like, without materializing leaves."""
    own = RULES.get(equation.primitive)
    if own is not None:
        return [own(equation, values)]
    rule = table.rule_of(equation)
    if rule.is_identity or _keeps_precision(equation):
        return _pass_on(equation, rule, values)
    # XLA fuses the dequantization of such leaves into the sum.
    if rule.kind is Kind.REDUCTION and all(x.node.is_streamed for x in values if is_leaf(x)):
        return bind(equation, [as_array(x) for x in values])
    movements = None
    if is_leaf(values[0]) and not any(map(is_leaf, values[1:])):
        movements = movements_of(equation, rule, values)
    if movements is None:
        raise CannotStayPacked(f"no rule for {equation.primitive.name}")
    return _move(values[0], movements)


def _pass_on(equation: Equation, rule: OpRule, values: list[Any]) -> list[Any]:
    """Compute an identity: packed operands are returned unchanged."""
    arrays = [x for x in values if not is_leaf(x)]
    packed = [x for x in values if is_leaf(x)]
    if len(values) == 1:
        movement = Movement(equation, rule, values, 0)
        return _move(packed[0], [movement]) if rule.is_identity else packed
    # An identity of several operands, such as `optimization_barrier`, still acts on arrays.
    found = iter(bind(equation, arrays) if arrays else ())
    return [x if is_leaf(x) else next(found) for x in values]


def _keeps_precision(equation: Equation) -> bool:
    """Return whether a `reduce_precision` drops no bit, as those of `jax.checkpoint`."""
    if equation.primitive is not primitives.reduce_precision_p:
        return False
    (operand,), k = equation.invars, equation.params
    info = jnp.finfo(operand.aval.dtype)
    return k["exponent_bits"] >= info.nexp and k["mantissa_bits"] >= info.nmant


def _move(leaf: PackedLeaf, movements: Sequence[Moves]) -> list[PackedLeaf]:
    try:
        return [_move_once(leaf, movement) for movement in movements]
    except CannotStayPacked as reason:
        raise CannotStayPacked(str(reason), _move_unpacked(leaf, movements)) from reason


def _move_once(leaf: PackedLeaf, movement: Moves) -> PackedLeaf:
    node = move(leaf.node, movement, leaf.shape)
    return PackedLeaf(_pad(leaf, node, movement) if movement.fills else node, leaf.path)


def _move_unpacked(leaf: PackedLeaf, movements: Sequence[Moves]) -> tuple[PackedLeaf, ...] | None:
    """Move the materialized weight of a leaf that rounds inputs; None for other leaves."""
    loose = unpack(leaf)
    if isinstance(loose, PackedLeaf):
        with contextlib.suppress(CannotStayPacked):
            return tuple(_move_once(loose, movement) for movement in movements)
    return None


def _pad(leaf: PackedLeaf, node: Any, movement: Moves) -> Any:
    """Pad a weight with zeros: with codes of zero, or with a mask if no code is zero."""
    if not isinstance(movement, Movement) or not _is_zero(movement.values[1]):
        raise CannotStayPacked("it is padded with values that are not known to be zero")
    return zero_outside(node, lambda: move(jnp.ones(leaf.shape, bool), movement, leaf.shape))


def _is_zero(x: Any) -> bool:
    return not isinstance(x, Tracer) and not np.asarray(x).any()


def _dot(equation: Equation, values: list[Any]) -> Array:
    settings = dict(equation.params)
    (left, right), (left_batch, right_batch) = settings.pop("dimension_numbers")
    others = tuple(settings.items())
    x, weight = values
    if is_leaf(x) and is_leaf(weight):
        raise CannotStayPacked("two packed leaves are multiplied")
    if is_leaf(weight):
        return dot(x, weight.node, Contraction(left, right, left_batch, right_batch, others))
    x, weight = weight, x
    # Nodes multiply arrays from the right, so the operands change places.
    swapped = Contraction(right, left, right_batch, left_batch, others)
    own = len(swapped.free(len(weight.shape)))

    def restore_order(out: Array) -> Array:
        """Put the axes of the weight before those of the array, as the step has them."""
        order = range(out.ndim)
        batch, last = len(left_batch), out.ndim - own
        return out.transpose((*order[:batch], *order[last:], *order[batch:last]))

    return after(lambda: dot(x, weight.node, swapped), restore_order)


def _convolution(equation: Equation, values: list[Any]) -> Array:
    x, kernel = values
    if is_leaf(x):
        raise CannotStayPacked("no rule for packed images")
    how = Convolution(
        lambda x, w: bind(equation, [x, w])[0],
        equation.params["preferred_element_type"],
        equation.params["dimension_numbers"],
    )
    return dot(x, kernel.node, how)


def _ragged(equation: Equation, values: list[Any]) -> Array:
    x, experts, sizes = values
    if is_leaf(x) or is_leaf(sizes):
        raise CannotStayPacked("it is not the experts of the product")
    how = Ragged.of(
        lambda x, w: bind(equation, [x, w, sizes])[0],
        equation.params["preferred_element_type"],
        equation.params["ragged_dot_dimension_numbers"],
        sizes,
    )
    return dot(x, experts.node, how)


def _concatenate(equation: Equation, values: list[Any]) -> PackedLeaf:
    if not all(is_leaf(value) for value in values):
        raise CannotStayPacked("it is concatenated with arrays")
    node = join([value.node for value in values], equation.params["dimension"])
    return PackedLeaf(node, _joint_path(values))


def _times(equation: Equation, values: list[Any]) -> PackedLeaf:
    leaf, number = values if is_leaf(values[0]) else values[::-1]
    if is_leaf(number) or jnp.ndim(number):
        raise CannotStayPacked("it is multiplied element by element")
    return PackedLeaf(times(leaf.node, number), leaf.path)


def _negate(equation: Equation, values: list[Any]) -> PackedLeaf:
    (leaf,) = values
    return PackedLeaf(times(leaf.node, jnp.asarray(-1, leaf.dtype)), leaf.path)


def _divide(equation: Equation, values: list[Any]) -> PackedLeaf:
    leaf, number = values
    if not is_leaf(leaf) or is_leaf(number) or jnp.ndim(number):
        raise CannotStayPacked("it is divided element by element")
    return PackedLeaf(times(leaf.node, 1 / number), leaf.path)


def _convert(equation: Equation, values: list[Any]) -> PackedLeaf:
    """Cast a leaf to a float dtype of 16 bits or more, in packed form."""
    (leaf,) = values
    dtype = jnp.dtype(equation.params["new_dtype"])
    if not jnp.issubdtype(dtype, jnp.floating):
        raise CannotStayPacked(f"{dtype} is not a dtype of floats")
    if dtype.itemsize < 2:  # no format of so few bits is a mere choice for speed
        raise CannotStayPacked(f"it is rounded to {dtype}")
    return PackedLeaf(cast(leaf.node, dtype), leaf.path)


class _RowLookup(NamedTuple):
    """A row lookup in the form of a movement, which applies to codes and scales alike."""

    shape: Shape
    kept: int
    apply: Callable[..., Array | None]
    axes: Shape = ()
    fills: bool = False


def _look_up(equation: Equation, values: list[Any]) -> Array:
    """Look up rows of an embedding: take their codes and scales, and dequantize only these."""
    leaf, indices, *_ = values
    settings = equation.params
    numbers, sizes = settings["dimension_numbers"], settings["slice_sizes"]
    if is_leaf(indices) or not is_leaf(leaf) or numbers.operand_batching_dims:
        raise CannotStayPacked("no rule for this gather")
    looked_up, filled = numbers.start_index_map, settings["mode"] is FILL

    def apply(x: Array, shape: Shape, fill: float = 0) -> Array | None:
        del fill  # rows out of bounds are replaced at the end
        coarse = [axis for axis, n in enumerate(shape) if x.shape[axis] not in (1, n)]
        if any(axis in looked_up or sizes[axis] != shape[axis] for axis in coarse):
            return None
        # If one entry serves all rows, every index looks up that entry.
        one = np.array([x.shape[axis] != shape[axis] for axis in looked_up])
        return lax.gather(
            x,
            jnp.where(one.reshape((1,) * (indices.ndim - 1) + one.shape), 0, indices),
            numbers,
            tuple(min(n, x.shape[axis]) for axis, n in enumerate(sizes)),
            mode=lax.GatherScatterMode.CLIP if filled else settings["mode"],
        )

    shape, last = tuple(equation.outvars[0].aval.shape), len(leaf.shape) - 1
    whole = last not in looked_up and sizes[last] == leaf.shape[last]
    kept = whole and numbers.offset_dims[-1:] == (len(shape) - 1,)
    rows = as_array(_move(leaf, [_RowLookup(shape, int(kept), apply)])[0])
    if not filled:
        return rows
    most = np.array([leaf.shape[axis] - sizes[axis] for axis in looked_up])
    inside = (
        (indices >= 0) & (indices <= most.reshape((1,) * (indices.ndim - 1) + most.shape))
    ).all(-1)
    others = tuple(axis for axis in range(len(shape)) if axis not in numbers.offset_dims)
    fill = jnp.nan if settings["fill_value"] is None else settings["fill_value"]
    return jnp.where(
        lax.broadcast_in_dim(inside, shape, others), rows, jnp.asarray(fill, rows.dtype)
    )


RULES: dict[Any, Callable[[Equation, list[Any]], Any]] = {
    primitives.dot_general_p: _dot,
    primitives.conv_general_dilated_p: _convolution,
    ragged_dot_general_p: _ragged,
    primitives.convert_element_type_p: _convert,
    primitives.gather_p: _look_up,
    primitives.concatenate_p: _concatenate,
    primitives.mul_p: _times,
    primitives.div_p: _divide,
    primitives.neg_p: _negate,
}
"""The functions that run steps other than movements on packed leaves, by primitive."""
