"""Hooks by which a packed parameter takes part in a program without being materialized."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from jax import lax

from nnopt_jax.typing import Array, Shape

if TYPE_CHECKING:
    from nnopt_jax.arrays.products.integer_products import IntegerWeight
    from nnopt_jax.arrays.products.product import Product

Field = Any
"""A field of a node: an array, another node, or None."""


class CannotStayPacked(Exception):
    """The error that a hook raises if its node must be materialized; the interpreter catches it.

    Args:
        reason: why the node must be materialized, in a few words.
        instead: the outcome of the step, if it is not that of the step on the materialized array; a
            tuple if there are several.

    Attributes:
        instead: the tuple of all outcomes; None if the step on the materialized array gives them.
    """

    def __init__(self, reason: str, instead: Any = None):
        super().__init__(reason)
        several = instead is None or isinstance(instead, tuple)
        self.instead: tuple[Any, ...] | None = instead if several else (instead,)


class Moves(Protocol):
    """A movement of the entries of a weight: a transpose, slice, padding or lookup."""

    @property
    def shape(self) -> Shape:
        """The shape of the outcome."""
        ...

    @property
    def kept(self) -> int:
        """The number of trailing axes that stay trailing, complete and in order."""
        ...

    @property
    def axes(self) -> Shape:
        """The permutation of axes, if the movement is only a transpose; else empty."""
        ...

    @property
    def fills(self) -> bool:
        """Whether the result has entries of the fill value, as after padding."""
        ...

    def apply(self, x: Array, shape: Shape, fill: float = 0) -> Array | None:
        """Apply the movement to an array with one entry for each element or block of the weight."""
        ...


class Hooks:
    """The behavior of a node in the steps of a program.

    A node overrides the hooks that it supports, and `nnopt_jax.on_packed` calls them. A hook
    computes its result from the fields; up to rounding, the result equals that of the step on the
    materialized array. By default, the hooks for steps raise `CannotStayPacked`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Powers
        >>> Powers(jnp.array([126, 127], jnp.uint8)).times(jnp.float32(2))
        Traceback (most recent call last):
        nnopt_jax.arrays.hooks.CannotStayPacked: it is scaled, and has no scale of its own
    """

    SHARED: ClassVar[tuple[str, ...] | None] = None
    """Fields without the axes of the weight, if all other fields have these axes (perhaps coarser)
    and move like the weight. None if they do not; the node then overrides `move`.
    """
    LINEAR: ClassVar[tuple[str, ...]] = ()
    """Fields that absorb a scalar factor, since the array is linear in all of them together."""
    TYPED: ClassVar[tuple[str, ...]] = ()
    """Fields whose dtype is that of the array, if the node does not state a dtype."""
    ROUNDS_INPUTS: ClassVar[bool] = False
    """Whether products round the other operand first."""
    FACTORS: ClassVar[tuple[str, ...]] = ()
    """Fields that products multiply one by one, so that each is prepacked by itself."""

    def dot(self, x: Array, how: Product) -> Array:
        """Multiply an array by the weight: a contraction, convolution or ragged product.

        Args:
            x: the array, on the left.
            how: the product; `how(x, array)` multiplies with an array.

        Raises:
            CannotStayPacked: the weight must be materialized.
        """
        raise CannotStayPacked("its form has no packed product")

    def move(self: Any, movement: Moves, shape: Shape) -> Field:
        """Move the entries of the weight: transpose, slice, pad or look up rows.

        Args:
            movement: the movement, which applies to arrays of the weight's shape and to coarser
                ones.
            shape: the shape of the moved weight; the node has this shape or a coarser one.

        Raises:
            CannotStayPacked: a field cannot be moved.
        """
        if self.SHARED is None:
            raise CannotStayPacked("one of its fields cannot be moved")
        names = [name for name in self.names() if name not in self.SHARED]
        return map_fields(self, names, lambda part: move(part, movement, shape))

    def cast(self: Any, dtype: Any) -> Field:
        """Cast to another float dtype; a node with a `dtype` field rounds once, when materialized.

        Raises:
            CannotStayPacked: the node does not declare which fields have the dtype of the array.
        """
        if "dtype" in self.names(is_static=True):
            return self.replace(dtype=str(dtype))
        if not self.TYPED:
            raise CannotStayPacked("its fields have dtypes of their own")
        return map_fields(self, self.TYPED, lambda part: cast(part, dtype))

    def times(self, number: Array) -> Field:
        """Multiply the weight by a scalar.

        Raises:
            CannotStayPacked: no field can absorb the scalar.
        """
        if not self.LINEAR:
            raise CannotStayPacked("it is scaled, and has no scale of its own")
        return map_fields(self, self.LINEAR, lambda part: times(part, number))

    def joined(self, fields: Sequence[Any], axis: int) -> Field:
        """Concatenate weights.

        Args:
            fields: nodes of this `join_key`, the node itself first.
            axis: the axis to concatenate on.

        Raises:
            CannotStayPacked: the fields cannot be concatenated.
        """
        raise CannotStayPacked("it is concatenated, and has fields that cannot be")

    def join_key(self: Any) -> Any:
        """Return the key that nodes must share to be concatenated: class, settings and fields."""
        settings = [getattr(self, name) for name in self.names(is_static=True)]
        return type(self), settings, [name for name, _ in self.fields()]

    def prepack(self, backend: str) -> Field:
        """Return the fastest form for products on a platform, by default the node itself.

        Args:
            backend: JAX's platform, such as `"cpu"`.
        """
        return self

    def multiplies(self, backend: str) -> bool:
        """Return whether products use the fields of the prepacked form directly.

        By default, this is whether the class has a `dot` of its own. Without one, every call
        materializes the array, and `prepack(..., dense=True)` does so once and for all.

        Args:
            backend: JAX's platform, such as `"cpu"`.
        """
        return type(self).dot is not Hooks.dot

    def integers(self) -> IntegerWeight | None:
        """Return the codes, of at most eight bits, with their grid; None without codes."""
        return None

    def zero_code(self) -> int:
        """Return the code of zero, near which the entropy coder expects most codes."""
        return 0

    def order_in_memory(self: Any) -> Shape:
        """Return the axes of the weight in the order of its entries in memory."""
        return tuple(range(self.ndim))

    def loosened(self: Any) -> Field:
        """Return the dense array, inside a node only if products need more than the array."""
        return self.materialize()

    @property
    def fills_with_zeros(self) -> bool:
        """Whether padding all fields with zeros pads the weight with zeros."""
        return False

    @property
    def is_streamed(self: Any) -> bool:
        """Whether reductions can compute entries one by one, without a dense array."""
        inner = (field for _, field in self.fields() if isinstance(field, Hooks))
        return self.SHARED is not None and all(field.is_streamed for field in inner)

    @property
    def follows_parts(self: Any) -> bool:
        """Whether slicing all fields slices the weight, because no static field holds a shape."""
        stated = {"shape", "sizes", "split", "length"} & set(self.names(is_static=True))
        inner = (field for _, field in self.fields() if isinstance(field, Hooks))
        return not stated and all(field.follows_parts for field in inner)


def map_fields(node: Any, names: Iterable[str], function: Callable[[Field], Field]) -> Any:
    """Apply a function to the named fields that the node has."""
    fields = dict(node.fields())
    return node.replace(**{name: function(fields[name]) for name in names if name in fields})


def dot(x: Array, weight: Field, how: Product) -> Array:
    """Multiply an array by an array or a node.

    Raises:
        CannotStayPacked: the node must be materialized.
    """
    weight = inputs_above(weight)
    return weight.dot(x, how) if isinstance(weight, Hooks) else how(x, weight)


def after(find: Callable[[], Array], change: Callable[[Array], Array]) -> Array:
    """Return `change(find())`; if `find` raises `CannotStayPacked`, change the results it holds."""
    try:
        found = find()
    except CannotStayPacked as reason:
        instead = reason.instead and tuple(change(outcome) for outcome in reason.instead)
        raise CannotStayPacked(str(reason), instead) from reason
    return change(found)


def move(field: Field, movement: Moves, shape: Shape) -> Field:
    """Move an array or a node that has one entry for each element or block of a weight.

    Raises:
        CannotStayPacked: a field of the node cannot be moved.
    """
    if isinstance(field, Hooks):
        return field.move(movement, shape)
    moved = movement.apply(field, shape)
    if moved is None:
        raise CannotStayPacked("one of its fields cannot be moved")
    return moved


def cast(field: Field, dtype: Any) -> Field:
    """Cast an array or a node to a float dtype.

    Raises:
        CannotStayPacked: the node does not declare which fields have the dtype of the array.
    """
    return field.cast(dtype) if isinstance(field, Hooks) else field.astype(dtype)


def times(field: Field, number: Array) -> Field:
    """Multiply an array or a node by a scalar.

    Raises:
        CannotStayPacked: no field of the node can absorb the scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Quantized
        >>> from nnopt_jax.arrays.hooks import times
        >>> node = Quantized(jnp.array([[1, 2]], jnp.int8), jnp.ones((1, 1)))
        >>> times(node, jnp.float32(0.5)).materialize()
        Array([[0.5, 1. ]], dtype=float32)
    """
    if isinstance(field, Hooks):
        return field.times(number)
    return (field * number).astype(field.dtype)


def join(fields: Sequence[Field], axis: int) -> Field:
    """Concatenate arrays or nodes.

    Codes on grids of the same kind are concatenated, and so are their scales.

    Args:
        fields: arrays or nodes of one shape except for the axis.
        axis: the axis to concatenate on.

    Raises:
        CannotStayPacked: the forms differ, or the grids differ on other axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Quantized
        >>> from nnopt_jax.arrays.hooks import join
        >>> one = Quantized(jnp.ones((4, 3), jnp.int8), jnp.ones((1, 3)))
        >>> join([one, one], 1)
        Quantized(codes int8[4,6], scale float32[1,6], 16 bits/weight)
    """
    first, *others = fields
    if not any(isinstance(field, Hooks) for field in fields):
        return lax.concatenate(list(fields), axis)
    key = first.join_key() if isinstance(first, Hooks) else None
    if any(not isinstance(field, Hooks) or field.join_key() != key for field in others):
        raise CannotStayPacked("it is concatenated with leaves of another form")
    return first.joined(fields, axis)


def integers(field: Field) -> IntegerWeight | None:
    """Return the codes and the grid of an array or a node; None without codes.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Masked, Quantized
        >>> grid = Quantized(jnp.array([[3.0, 2.0]]), jnp.array([[0.5]]))
        >>> print(integers(Masked(grid, jnp.array([[True, False]]))).codes)
        [[3 0]]
    """
    return field.integers() if isinstance(field, Hooks) else None


def order_in_memory(field: Field) -> Shape:
    """Return the axes of an array or a node in the order of its entries in memory."""
    return field.order_in_memory() if isinstance(field, Hooks) else tuple(range(field.ndim))


def inputs_above(field: Field) -> Field:
    """Make an `InputQuantized` node inside of other nodes the outermost, as products expect.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import InputQuantized, Masked
        >>> from nnopt_jax.arrays.hooks import inputs_above
        >>> below = Masked(InputQuantized(jnp.ones((2, 2))), jnp.eye(2, dtype=bool))
        >>> inputs_above(below).outline()
        'InputQuantized(values Masked(values float32[2,2], mask bool[2,2]))'
    """
    outer: Any = field if isinstance(field, Hooks) else None
    if outer is None or outer.ROUNDS_INPUTS or "values" not in outer.names():
        return field
    below = inputs_above(outer.values)
    if not getattr(below, "ROUNDS_INPUTS", False):
        return field
    return below.replace(values=outer.replace(values=below.values))
