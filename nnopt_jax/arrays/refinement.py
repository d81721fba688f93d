"""The float arrays in a parameter that a later transform may refine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.nodes import Field, is_node
from nnopt_jax.columns import brief_fields
from nnopt_jax.ops.axis_roles import Axes


@dataclasses.dataclass(frozen=True)
class Slot:
    """A float array in a parameter that a later transform of a chain may refine.

    Args:
        name: the path of fields to the array, such as `values/table`; empty for a plain array.
        array: the float array itself.
        kind: `"value"`, or `"code"` for integers (held as floats) on a quantization grid.
        mask: bool, of the array's shape: the entries that an enclosing `Masked` keeps; None for
            all.
        axes: the roles of the array's axes in products; None if they are unknown.
        path: the path of the leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import slots
        >>> [(slot.name, slot.kind) for slot in slots(jnp.ones(3))]
        [('', 'value')]
    """

    name: str
    array: jax.Array
    kind: str
    mask: jax.Array | None
    axes: Axes | None = None
    path: str = ""

    __repr__ = brief_fields


def refine(
    parameter: Field, function: Callable[[Slot], Field], axes: Axes | None = None, path: str = ""
) -> Field:
    """Replace every float slot of a parameter, but never a node above a slot.

    Args:
        parameter: an array or a node.
        function: takes a `Slot` and returns its replacement.
        axes: the axes of the parameter, if they are known.
        path: the path of the leaf.

    Returns:
        The parameter with its slots replaced; integers and stored nodes stay unchanged.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Masked, refine
        >>> tree = Masked(jnp.array([1.0, 2.0]), jnp.array([True, False]))
        >>> refine(tree, lambda slot: slot.array * 3).materialize()
        Array([3., 0.], dtype=float32)
    """
    return _refine(parameter, function, Slot("", parameter, "value", None, axes, path))


def _refine(field: Field, function: Callable[[Slot], Field], at: Slot) -> Field:
    if not is_node(field):
        floating = jnp.issubdtype(field.dtype, jnp.floating)
        return function(dataclasses.replace(at, array=field)) if floating else field
    replaced = {}
    for name, kind in field.SLOTS.items():
        inner = Slot(
            name=f"{at.name}/{name}".strip("/"),
            array=getattr(field, name),
            kind=at.kind if kind == "inherit" else kind,
            mask=field.slot_mask(name, at.mask),
            axes=field.slot_axes(name, at.axes),
            path=at.path,
        )
        replaced[name] = _refine(inner.array, function, inner)
    return field.replace(**replaced)


def slots(parameter: Field, axes: Axes | None = None, path: str = "") -> list[Slot]:
    """List the float slots of a parameter, in the order in which `refine` visits them.

    Args:
        parameter: an array or a packed parameter.
        axes: the axes of the weight, if they are known; each slot gets those that it has.
        path: the path of the leaf, which each slot gets.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Factored, slots
        >>> [slot.name for slot in slots(Factored(jnp.ones((3, 1)), jnp.ones((1, 2))))]
        ['u', 'v']
    """
    found: list[Slot] = []
    refine(parameter, lambda slot: (found.append(slot), slot.array)[1], axes, path)
    return found
