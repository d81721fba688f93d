"""The base class of all nodes: frozen pytrees that stand for a dense array."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn, Self, TypeVar, dataclass_transform

import jax
from jax import export
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.hooks import Field as Field, Hooks
from nnopt_jax.errors import CompositionError
from nnopt_jax.ops.axis_roles import Axes, assumed_axes
from nnopt_jax.tree.bit_counts import tree_bits

NodeType = TypeVar("NodeType", bound="type[Node]")
NODE_TYPES: dict[str, type[Node]] = {}
"""All node classes by their names in files, the only classes that a description may name."""

_FILE_NAMES = {
    "BSR": "Blocks",
    "BlockELL": "GatheredBlocks",
    "CSR": "Rows",
    "DeltaIndex": "Gaps",
    "ELL": "Gathered",
    "LookupQuantized": "Levels",
    "NMIndex": "Groups",
    "PackedTernary": "Trits",
    "SoftThresholded": "Shrunk",
}
"""The names of classes in files, where they differ from those in Python. Files, checkpoints,
checksums of adapters and exported programs contain these names, so that they must survive every
renaming.
"""


def static(*, late: bool = False, **options: Any) -> Any:
    """Declare a static field of a node: hashable, part of its type, never traced.

    Args:
        late: whether the field was added after files had been written. Descriptions omit a late
            field that has its default, so that they equal those of old files.
        **options: other arguments of `dataclasses.field`.

    Returns:
        The field.

    Example:
        >>> from nnopt_jax.arrays.nodes import static
        >>> static(default=3).metadata["static"]
        True
    """
    return dataclasses.field(metadata={"static": True, "late": late}, **options)


class Node(Hooks):
    """Base class of all nodes; the decorator `node` makes concrete classes.

    A node's array fields are pytree data; all other fields are static and hashable. Nothing is
    checked when a node is built, because `jax.vmap`, `jax.tree.map` and others build nodes from
    objects that are not arrays. Constructors named `of` and transforms check instead.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Masked
        >>> Masked(jnp.array([1.0, 2.0]), jnp.array([True, False])).materialize()
        Array([1., 0.], dtype=float32)
    """

    VERSION: ClassVar[int] = 1
    """The version, which is incremented when fields change so that old files are recognized."""
    ELEMENTWISE: ClassVar[tuple[str, ...]] = ()
    """Fields with the axes of the logical array, which a mask over the node may compact."""
    CODES: ClassVar[bool] = False
    """Whether values become codes, which cannot represent NaN or infinity."""
    COMPACTABLE: ClassVar[bool] = True
    """Whether a mask above may compact the elementwise fields; False if one of them is a mask."""
    KEEPS_ZERO: ClassVar[bool] = False
    """Whether zeros of the elementwise field stay zeros, so that masks can move across the node."""
    SLOTS: ClassVar[Mapping[str, str]] = {}
    """Fields that a later transform may refine, by kind; "inherit" takes the enclosing kind."""

    @classmethod
    def file_name(cls) -> str:
        """Return the name of the class in files, checkpoints and exported programs."""
        return _FILE_NAMES.get(cls.__name__, cls.__name__)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array the node stands for, by default that of the first field."""
        return getattr(self, self.names()[0]).shape

    @property
    def dtype(self) -> Any:
        """The dtype of the array the node stands for, by default that of the first field."""
        return getattr(self, self.names()[0]).dtype

    @property
    def ndim(self) -> int:
        """The number of axes of the array the node stands for."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements of the array the node stands for."""
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        """The number of bits of all arrays in the node."""
        return tree_bits(self)

    def materialize(self) -> jax.Array:
        """Compute the dense array, in float32, and cast it once at the end."""
        raise NotImplementedError

    def store(self) -> Node:
        """Return the storage form, which equals this node bit for bit but lacks training fields."""
        return self.replace(**{name: store_field(field) for name, field in self.fields()})

    def map_elementwise(self, function: Callable[[jax.Array], jax.Array]) -> Node:
        """Apply a function to the fields that have the axes of the weight."""
        return self.replace(
            **{name: map_elementwise(getattr(self, name), function) for name in self.ELEMENTWISE}
        )

    def slot_mask(self, name: str, outer: jax.Array | None) -> jax.Array | None:
        """Return a mask of the entries of a slot that are in use.

        Args:
            name: the slot's field.
            outer: bool, of the node's shape: the entries that the masks above keep; None for all.

        Returns:
            bool, of the field's shape, or None for all.
        """
        return outer if name in self.ELEMENTWISE else None

    def slot_axes(self, name: str, axes: Axes | None) -> Axes | None:
        """Return the axes of a slot.

        Args:
            name: the slot's field.
            axes: the axes of the node; None if they are unknown.
        """
        inner = tuple(getattr(self, name).shape)
        return axes if inner == tuple(self.shape) else assumed_axes(inner)

    def kept(self) -> Field:
        """Return the mask of the node, False where entries stay zero; None without a mask."""
        return kept(getattr(self, self.ELEMENTWISE[0])) if self.KEEPS_ZERO else None

    def specs(self, spec: PartitionSpec, mesh: jax.sharding.Mesh | None = None) -> Node:
        """Return the node with a `PartitionSpec` in place of every array.

        Args:
            spec: how the logical array is partitioned.
            mesh: if given, a field is not split along axes that its size does not divide by.
        """
        whole = self.names() if self.SHARED is None else self.SHARED
        like = {
            name: field_specs(
                field,
                PartitionSpec() if name in whole and name not in self.ELEMENTWISE else spec,
                mesh,
            )
            for name, field in self.fields()
        }
        return self.replace(**like)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """List the broken invariants, each a phrase that follows the class name.

        Args:
            shape: the logical shape. Inside `Sparse`, elementwise fields hold only kept elements,
                so that their own shape does not determine it.
        """
        return self.inner_problems(shape)

    def inner_problems(self, shape: tuple[int, ...] | None = None) -> list[str]:
        """List the broken invariants of the nodes in the fields.

        Args:
            shape: the logical shape of these nodes; None for the shape that each of them states.
        """
        inner = [field for _, field in self.fields() if is_node(field)]
        return [
            text
            for field in inner
            for text in field.problems(field.shape if shape is None else shape)
        ]

    def replace(self, **fields: Field) -> Self:
        """Return a copy with some fields replaced."""
        return dataclasses.replace(self, **fields)  # pyright: ignore[reportArgumentType]

    @classmethod
    def names(cls, *, is_static: bool = False) -> tuple[str, ...]:
        """Return the names of the data fields, or those of the static fields."""
        return tuple(
            field.name
            for field in dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
            if field.metadata.get("static", False) is is_static
        )

    def fields(self) -> list[tuple[str, Field]]:
        """Return the names and values of the data fields that are not None."""
        present = [(name, getattr(self, name)) for name in self.names()]
        return [(name, field) for name, field in present if field is not None]

    def outline(self) -> str:
        """Return a one-line summary of the fields."""
        inner = ", ".join(f"{name} {summary(field)}" for name, field in self.fields())
        return f"{type(self).__name__}({inner})"

    def __jax_array__(self, *_: Any, **__: Any) -> NoReturn:
        """Raise an error, because a packed parameter becomes an array only on request."""
        raise CompositionError(
            f"{self.outline()} is a packed parameter, not an array. Give it as an argument to "
            "nnopt.on_packed(function): values that a function closes over, and modules that were "
            "merged outside of it, stay packed. Or call nnopt.materialize(tree)."
        )

    __array__ = __jax_array__
    __array_ufunc__ = None  # makes NumPy's operators defer to those of the node
    __getitem__ = __neg__ = __jax_array__
    __add__ = __sub__ = __mul__ = __truediv__ = __matmul__ = __pow__ = __jax_array__
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rmatmul__ = __rpow__ = __jax_array__

    def __repr__(self) -> str:
        """Return the outline with the number of bits per weight."""
        outline = self.outline()
        if not outline.endswith(")"):
            return outline
        try:
            return f"{outline[:-1]}, {self.bits / max(self.size, 1):.4g} bits/weight)"
        except (AttributeError, TypeError):  # holds specs, axes or other stand-ins for arrays
            return outline


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(static,))
def node(cls: NodeType) -> NodeType:
    """Make a node class: a frozen dataclass that JAX, `jax.export` and files know.

    Args:
        cls: a subclass of `Node` with annotated fields; static ones are declared by `static()`.

    Returns:
        The class, registered with JAX.

    Example:
        >>> from nnopt_jax.arrays.nodes import NODE_TYPES
        >>> "Masked" in NODE_TYPES
        True
    """
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    jax.tree_util.register_dataclass(cls, cls.names(), cls.names(is_static=True))
    export.register_pytree_node_serialization(
        cls,
        serialized_name=f"nnopt_jax.{cls.file_name()}.v{cls.VERSION}",
        serialize_auxdata=lambda aux: json.dumps(aux).encode(),
        deserialize_auxdata=lambda data: _tuples(json.loads(data.decode())),
    )
    NODE_TYPES[cls.file_name()] = cls
    return cls


def _tuples(value: Any) -> Any:
    """Convert lists back to tuples, since JSON turns the tuples of static fields into lists."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def is_node(x: Any) -> bool:
    """Return whether `x` is a node; meant to be passed as `is_leaf`.

    Args:
        x: any value.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Masked, is_node
        >>> is_node(Masked(jnp.ones(2), jnp.ones(2, bool))), is_node(jnp.ones(2))
        (True, False)
    """
    return isinstance(x, Node)


def materialize(tree: Any) -> Any:
    """Replace every packed parameter of a tree by the dense array it stands for.

    Args:
        tree: any pytree of arrays and nodes, in training or storage form.

    Returns:
        The tree, with plain arrays only.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> nnopt.materialize({"w": nnopt.arrays.Masked(jnp.ones(2), jnp.array([True, False]))})
        {'w': Array([1., 0.], dtype=float32)}
    """
    return jax.tree.map(lambda x: x.materialize() if is_node(x) else x, tree, is_leaf=is_node)


def store_field(field: Field) -> Field:
    """Return the storage form of a node; return an array unchanged."""
    return field.store() if is_node(field) else field


def map_elementwise(field: Field, function: Callable[[jax.Array], jax.Array]) -> Field:
    """Apply a function to an array, or to the elementwise fields of a node."""
    return field.map_elementwise(function) if is_node(field) else function(field)


def kept(field: Field) -> Field:
    """Return the mask of a node; None for an array.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Masked, SoftThresholded
        >>> from nnopt_jax.arrays.nodes import kept
        >>> kept(SoftThresholded(Masked(jnp.ones(2), jnp.array([True, False])), jnp.float32(0.5)))
        Array([ True, False], dtype=bool)
    """
    return field.kept() if is_node(field) else None


def compactable(field: Field) -> bool:
    """Return whether storage can omit the masked entries of a node's elementwise fields."""
    if not is_node(field):
        return True
    names = field.ELEMENTWISE if field.COMPACTABLE else ()
    return bool(names) and all(compactable(getattr(field, name)) for name in names)


def is_spec(x: Any) -> bool:
    """Return whether `x` is a `PartitionSpec`; meant to be passed as `is_leaf`.

    Example:
        >>> from jax.sharding import PartitionSpec
        >>> from nnopt_jax.arrays.nodes import is_spec
        >>> is_spec(PartitionSpec("data")), is_spec(None)
        (True, False)
    """
    return isinstance(x, PartitionSpec)


def field_specs(field: Field, spec: PartitionSpec, mesh: jax.sharding.Mesh | None) -> Field:
    """Return the partition specs of a field, given the spec of the array that it belongs to."""
    return field.specs(spec, mesh) if is_node(field) else fit_spec(spec, field.shape, mesh)


def fit_spec(
    spec: PartitionSpec, shape: tuple[int, ...], mesh: jax.sharding.Mesh | None
) -> PartitionSpec:
    """Drop the axes of a partition spec along which an array of this shape cannot be split.

    A scale with one entry along an axis is replicated over it. With a mesh, an axis whose devices
    do not divide the array is dropped as well, because JAX would replicate the array silently.

    Args:
        spec: the spec of the logical array.
        shape: the shape of the field.
        mesh: the mesh, or None to keep every axis of more than one entry.

    Returns:
        A spec of at most `len(shape)` entries.

    Example:
        >>> from jax.sharding import PartitionSpec
        >>> from nnopt_jax.arrays.nodes import fit_spec
        >>> tuple(fit_spec(PartitionSpec("data", "model"), (1, 8), None))
        (None, 'model')
    """
    fitted = []
    for size, axes in zip(shape, spec, strict=False):
        names = (axes,) if isinstance(axes, str) else tuple(axes or ())
        parts = math.prod(mesh.shape[name] for name in names) if mesh is not None else 1
        fitted.append(axes if size > 1 and size % parts == 0 else None)
    return PartitionSpec(*fitted)


def summary(field: Field) -> str:
    """Return a short summary of a field: `float32[3,4]`, or the outline of a node."""
    if is_node(field):
        return field.outline()
    try:
        name = "float0" if field.dtype == jax.dtypes.float0 else field.dtype
        return f"{name}[{','.join(map(str, field.shape))}]"
    except AttributeError:
        return repr(field)
