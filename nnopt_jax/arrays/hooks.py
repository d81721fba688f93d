"""What the steps of a program ask of a packed parameter, so that it stays packed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from jax import lax

from nnopt_jax.typing import Array, Shape

if TYPE_CHECKING:
    from nnopt_jax.arrays.products.int8_product import Integers
    from nnopt_jax.arrays.products.product import Product

Field = Any
"""A field of a node: an array, another node, or None."""


class CannotStayPacked(Exception):
    """Says why a step needs the dense array of a node; whoever runs the program catches it.

    Args:
        reason: in a few words.
        instead: the outcome of the step, where that is more than the step on the dense array: an
            array, or a tuple of all outcomes.
    """

    def __init__(self, reason: str, instead: Any = None):
        super().__init__(reason)
        self.instead = instead


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


class Hooks:
    """What a node does in the steps of a program; by default it says why it cannot stay packed.

    A node defines the hooks that it has an answer to, which `nnopt_jax.on_packed` asks. An answer
    is computed from the fields and equals, rounding apart, the step on the dense array.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Powers
        >>> Powers(jnp.array([126, 127], jnp.uint8)).times(jnp.float32(2))
        Traceback (most recent call last):
        nnopt_jax.arrays.hooks.CannotStayPacked: it is scaled, and has no scale of its own
    """

    SHARED: ClassVar[tuple[str, ...] | None] = None
    """Fields that are for the whole weight, where all others lie like it or coarser and so can be
    moved as it is; None where they do not, and `move` says what happens."""
    LINEAR: ClassVar[tuple[str, ...]] = ()
    """Fields that the array is linear in together: they take a factor of the weight."""
    TYPED: ClassVar[tuple[str, ...]] = ()
    """Fields whose dtype is that of the array, where the node does not state one."""
    ROUNDS_INPUTS: ClassVar[bool] = False
    """Whether products round the other operand first."""
    GRADIENT_AT: ClassVar[str] = ""
    """The field that is a dense array for gradients alone, if there is one."""

    def dot(self, x: Array, how: Product) -> Array:
        """Multiply an array by the weight: a contraction, convolution or ragged product.

        Args:
            x: the array, on the left.
            how: the product; `how(x, array)` multiplies with an array.

        Raises:
            CannotStayPacked: there is no way but to materialize the weight.
        """
        raise CannotStayPacked("no product of its parts is the product of the whole")

    def move(self: Any, movement: Moves, shape: Shape) -> Field:
        """Move the entries: transpose, slice, pad, look up rows.

        Args:
            movement: moves arrays that are as coarse as a weight's fields.
            shape: of the weight that the movement is of; the node has its shape or is coarser.

        Raises:
            CannotStayPacked: a field cannot follow.
        """
        if self.SHARED is None:
            raise CannotStayPacked("a part of it cannot follow")
        names = [name for name in self.names() if name not in self.SHARED]
        return _mapped(self, names, lambda part: move(part, movement, shape))

    def cast(self: Any, dtype: Any) -> Field:
        """Cast to another dtype of floats: once, at the end, where the node states its dtype.

        Raises:
            CannotStayPacked: the node says nothing about the dtypes of its fields.
        """
        if "dtype" in self.names(is_static=True):
            return self.replace(dtype=str(dtype))
        if not self.TYPED:
            raise CannotStayPacked("its parts have dtypes of their own")
        return _mapped(self, self.TYPED, lambda part: cast(part, dtype))

    def times(self, number: Array) -> Field:
        """Multiply the weight by a scalar.

        Raises:
            CannotStayPacked: no field has a place for it.
        """
        if not self.LINEAR:
            raise CannotStayPacked("it is scaled, and has no scale of its own")
        return _mapped(self, self.LINEAR, lambda part: times(part, number))

    def joined(self, fields: Sequence[Any], axis: int) -> Field:
        """Put weights side by side.

        Args:
            fields: nodes of this `form`, the node itself first.
            axis: along which.

        Raises:
            CannotStayPacked: the fields cannot be put side by side.
        """
        raise CannotStayPacked("it is put beside others, and has parts that cannot be")

    def form(self: Any) -> Any:
        """Return what nodes that are `joined` must have in common."""
        settings = [getattr(self, name) for name in self.names(is_static=True)]
        return type(self), settings, [name for name, _ in self.fields()]

    def integers(self) -> Integers | None:
        """Return the weight as codes of eight bits or fewer and their grid, if it has such."""
        return None

    def order_in_memory(self: Any) -> Shape:
        """Return the axes of the weight in the order in which its entries lie."""
        return tuple(range(self.ndim))

    def loosened(self: Any) -> Field:
        """Return the dense array; in a node, where products need to know more than the array."""
        return self.materialize()

    @property
    def fills_with_zeros(self) -> bool:
        """Whether zeros added around all fields are zeros of the weight."""
        return False

    @property
    def is_streamed(self: Any) -> bool:
        """Whether each entry comes from a few entries of the fields: a sum stores no array."""
        inner = (field for _, field in self.fields() if isinstance(field, Hooks))
        return self.SHARED is not None and all(field.is_streamed for field in inner)

    @property
    def follows_parts(self: Any) -> bool:
        """Whether parts of all fields are a part of the weight: no field states a shape."""
        stated = {"shape", "sizes", "split", "length"} & set(self.names(is_static=True))
        inner = (field for _, field in self.fields() if isinstance(field, Hooks))
        return not stated and all(field.follows_parts for field in inner)


def _mapped(node: Any, names: Iterable[str], function: Callable[[Field], Field]) -> Any:
    """Apply a function to those of some fields that are there."""
    fields = dict(node.fields())
    return node.replace(**{name: function(fields[name]) for name in names if name in fields})


def dot(x: Array, weight: Field, how: Product) -> Array:
    """Multiply an array by an array or a node.

    Raises:
        CannotStayPacked: there is no way but to materialize the node.
    """
    weight = inputs_above(weight)
    return weight.dot(x, how) if isinstance(weight, Hooks) else how(x, weight)


def after(find: Callable[[], Array], change: Callable[[Array], Array]) -> Array:
    """Change what is found, also where that comes instead of the step on a dense array."""
    try:
        found = find()
    except CannotStayPacked as reason:
        instead = None if reason.instead is None else change(reason.instead)
        raise CannotStayPacked(str(reason), instead) from reason
    return change(found)


def move(field: Field, movement: Moves, shape: Shape) -> Field:
    """Move an array or a node as a weight of a shape is moved.

    Raises:
        CannotStayPacked: a part of it cannot follow.
    """
    if isinstance(field, Hooks):
        return field.move(movement, shape)
    moved = movement.apply(field, shape)
    if moved is None:
        raise CannotStayPacked("a part of it cannot follow")
    return moved


def cast(field: Field, dtype: Any) -> Field:
    """Cast an array or a node to a dtype of floats.

    Raises:
        CannotStayPacked: the node has parts of dtypes of their own.
    """
    return field.cast(dtype) if isinstance(field, Hooks) else field.astype(dtype)


def times(field: Field, number: Array) -> Field:
    """Multiply an array or a node by a scalar.

    Raises:
        CannotStayPacked: the node has no place for it.

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
    """Put arrays or nodes side by side.

    Codes of grids alike are joined, and so are their scales, an entry for each group of all.

    Args:
        fields: of one shape but for the axis.
        axis: along which.

    Raises:
        CannotStayPacked: they are of different forms, or their grids differ along other axes.

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
    form = first.form() if isinstance(first, Hooks) else None
    if any(not isinstance(field, Hooks) or field.form() != form for field in others):
        raise CannotStayPacked("it is put beside leaves of another form")
    return first.joined(fields, axis)


def integers(field: Field) -> Integers | None:
    """Return the codes and the grid of an array or a node, if it has such.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Masked, Quantized
        >>> grid = Quantized(jnp.array([[3.0, 2.0]]), jnp.array([[0.5]]))
        >>> print(integers(Masked(grid, jnp.array([[True, False]]))).codes)
        [[3 0]]
    """
    return field.integers() if isinstance(field, Hooks) else None


def order_in_memory(field: Field) -> Shape:
    """Return the axes of an array or a node in the order in which its entries lie."""
    return field.order_in_memory() if isinstance(field, Hooks) else tuple(range(field.ndim))


def inputs_above(field: Field) -> Field:
    """Lets the rounding of inputs below a mask stand above it, where products look for it.

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
