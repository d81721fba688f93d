"""One step of a program on packed leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from nnopt_jax.arrays.base import Field, is_node
from nnopt_jax.arrays.codebook import Codebook
from nnopt_jax.arrays.factored import Factored
from nnopt_jax.arrays.gathered import Gathered, GatheredBlocks
from nnopt_jax.arrays.input_quantized import InputQuantized, inputs_above
from nnopt_jax.arrays.levels import Levels
from nnopt_jax.arrays.masked import Masked
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.arrays.sparse import Sparse
from nnopt_jax.trace.jaxpr import Equation, primitives
from nnopt_jax.trace.packed.leaf import Leaf, is_leaf, loosened
from nnopt_jax.trace.packed.rules.contract import contract
from nnopt_jax.trace.packed.rules.contraction import Contraction, Dense, after
from nnopt_jax.trace.packed.rules.convolve import convolve
from nnopt_jax.trace.packed.rules.join import joined
from nnopt_jax.trace.packed.rules.move import moved, view_of
from nnopt_jax.trace.packed.rules.times import times
from nnopt_jax.trace.packed.rules.view import View
from nnopt_jax.typing import Array

FILL = lax.GatherScatterMode.FILL_OR_DROP
"""Rows beyond the end are such as the program says, NaN by custom."""


_HOLD_VALUES = Masked | Sparse | InputQuantized | Gathered | GatheredBlocks
"""Nodes that are cast as their values are."""


def step(equation: Equation, values: list[Any]) -> Any:
    """Computes one step of which some operands are packed.

    Args:
        equation: the step, of one outcome.
        values: its operands: arrays, and one `Leaf` or more.

    Returns:
        A `Leaf` where the outcome stays packed, else an array.

    Raises:
        Dense: the leaf must be made dense for it.
    """
    rule = RULES.get(equation.primitive)
    if rule is not None:
        return rule(equation, values)
    leaf, *others = values
    view = None
    if is_leaf(leaf) and not any(is_leaf(other) for other in others):
        view = view_of(equation, leaf.shape, values)
    if view is None:
        raise Dense(f"no rule for {equation.primitive.name}")
    return _seen(leaf, view)


def _seen(leaf: Leaf, view: View) -> Leaf:
    node = moved(leaf.node, view)
    if node is None:
        loose = loosened(leaf)
        found = moved(loose.node, view) if isinstance(loose, Leaf) else None
        rounding = None if found is None else Leaf(found, leaf.path)
        raise Dense("a part of it cannot follow", rounding)
    return Leaf(node, leaf.path)


def _dot(equation: Equation, values: list[Any]) -> Array:
    settings = dict(equation.params)
    (left, right), (left_batch, right_batch) = settings.pop("dimension_numbers")
    others = tuple(settings.items())
    x, weight = values
    if is_leaf(x) and is_leaf(weight):
        raise Dense("two packed leaves are multiplied")
    if is_leaf(weight):
        return contract(x, weight.node, Contraction(left, right, left_batch, right_batch, others))
    x, weight = weight, x
    swapped = Contraction(right, left, right_batch, left_batch, others)
    own = len(swapped.free(len(weight.shape)))

    def turned(out: Array) -> Array:
        """Axes of the weight before those of the array, as the step has them."""
        order = range(out.ndim)
        batch, last = len(left_batch), out.ndim - own
        return out.transpose((*order[:batch], *order[last:], *order[batch:last]))

    return after(lambda: contract(x, weight.node, swapped), turned)


def _convolution(equation: Equation, values: list[Any]) -> Array:
    x, weight = values
    if is_leaf(x):
        raise Dense("no rule for packed images")
    return convolve(x, inputs_above(weight.node), equation)


def _concatenate(equation: Equation, values: list[Any]) -> Leaf:
    if not all(is_leaf(value) for value in values):
        raise Dense("it is put beside arrays")
    node = joined([value.node for value in values], equation.params["dimension"])
    return Leaf(node, " and ".join(dict.fromkeys(value.path for value in values)))


def _times(equation: Equation, values: list[Any]) -> Leaf:
    leaf, number = values if is_leaf(values[0]) else values[::-1]
    if is_leaf(number) or jnp.ndim(number):
        raise Dense("it is multiplied element by element")
    return Leaf(times(leaf.node, number), leaf.path)


def _negated(equation: Equation, values: list[Any]) -> Leaf:
    (leaf,) = values
    return Leaf(times(leaf.node, jnp.asarray(-1, leaf.dtype)), leaf.path)


def _divided(equation: Equation, values: list[Any]) -> Leaf:
    leaf, number = values
    if not is_leaf(leaf) or is_leaf(number) or jnp.ndim(number):
        raise Dense("it is divided element by element")
    return Leaf(times(leaf.node, 1 / number), leaf.path)


def _convert(equation: Equation, values: list[Any]) -> Leaf:
    """The cast is that of the product of codes and scales: once, at the end."""
    (leaf,) = values
    dtype = jnp.dtype(equation.params["new_dtype"])
    if not jnp.issubdtype(dtype, jnp.floating):
        raise Dense(f"{dtype} is no dtype of floats")
    return Leaf(_cast(leaf.node, dtype), leaf.path)


def _cast(field: Field, dtype: Any) -> Field:
    if not is_node(field):
        return field.astype(dtype)
    if isinstance(field, Quantized | Codebook | Factored | Levels):
        return field.replace(dtype=str(dtype))
    inner = "base" if isinstance(field, Reshaped) else "values"
    if not isinstance(field, _HOLD_VALUES | Reshaped):
        raise Dense("its parts have dtypes of their own")
    parts = {inner: _cast(getattr(field, inner), dtype)}
    if isinstance(field, InputQuantized) and field.shown is not None:
        parts["shown"] = field.shown.astype(dtype)
    return field.replace(**parts)


def _rows(equation: Equation, values: list[Any]) -> Array:
    """Rows of an embedding: of the codes, then of the scales, and only those are made dense."""
    leaf, indices, *_ = values
    settings = equation.params
    numbers, sizes = settings["dimension_numbers"], settings["slice_sizes"]
    if is_leaf(indices) or not is_leaf(leaf) or numbers.operand_batching_dims:
        raise Dense("no rule for this gather")
    looked_up, filled = numbers.start_index_map, settings["mode"] is FILL

    def apply(x: Array, shape: tuple[int, ...]) -> Array | None:
        if any(x.shape[axis] not in (1, shape[axis]) for axis in looked_up):
            return None
        # Where there is one entry for all rows, every row has that one.
        one = np.array([x.shape[axis] != shape[axis] for axis in looked_up])
        return lax.gather(
            x,
            jnp.where(one.reshape((1,) * (indices.ndim - 1) + one.shape), 0, indices),
            numbers,
            tuple(n if n != shape[axis] else x.shape[axis] for axis, n in enumerate(sizes)),
            mode=lax.GatherScatterMode.CLIP if filled else settings["mode"],
        )

    shape, last = tuple(equation.outvars[0].aval.shape), len(leaf.shape) - 1
    kept = last not in looked_up and numbers.offset_dims[-1:] == (len(shape) - 1,)
    rows = _seen(leaf, View(shape, apply, int(kept))).node.materialize()
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
    primitives.convert_element_type_p: _convert,
    primitives.gather_p: _rows,
    primitives.concatenate_p: _concatenate,
    primitives.mul_p: _times,
    primitives.div_p: _divided,
    primitives.neg_p: _negated,
}
"""Steps that do more than move elements."""
