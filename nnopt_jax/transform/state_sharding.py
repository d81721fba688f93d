"""Partition specs of states and packed parameters, derived from those of the parameters."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from nnopt_jax.arrays.nodes import field_specs, fit_spec, is_node, is_spec
from nnopt_jax.errors import SelectionError, nearest
from nnopt_jax.ops.axis_roles import Axes
from nnopt_jax.transform.base import TOGETHER, State, Transform, abstract_state
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.typing import Shape

_SIDES = {"a": "in", "u": "in", "b": "out", "v": "out"}
"""The side of a weight that a factor has, by its name in a state."""


def _by_path(specs: Any, leaves: dict[str, Any], who: str) -> dict[str, PartitionSpec]:
    """Return the spec of each leaf; raise if any leaf lacks one."""
    given = flatten(specs, lambda x: x is None or is_spec(x))
    for path in leaves:
        if path not in given:
            raise SelectionError(
                f"{who}: no spec for {path!r}.{nearest(path, given)} Give a tree of PartitionSpec "
                "of the structure of the parameters, PartitionSpec() for replicated leaves."
            )
    return {path: given[path] or PartitionSpec() for path in leaves}


def state_specs(tx: Transform, params: Any, specs: Any, mesh: Mesh | None = None) -> Any:
    """Return partition specs for the state of a transform, derived from those of parameters.

    A mask is sharded like its leaf, a scale along the axes on which it has entries, and a factor
    (an array named `a`, `b`, `u` or `v`) along the contracted or output axis that it has. Tables,
    counts and arrays of other shapes are replicated.

    Args:
        tx: the transform.
        params: the parameters, or `jax.ShapeDtypeStruct`s in their place.
        specs: a `PartitionSpec` for each leaf.
        mesh: if given, axes that do not divide an array are dropped for that array.

    Returns:
        A tree of the structure of the state with a `PartitionSpec` for every array. As shardings,
        it is the argument of `jax.jit(tx.init, out_shardings=...)`.

    Raises:
        SelectionError: a leaf has no spec.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec
        >>> import nnopt_jax as nnopt
        >>> params, specs = {"w": jnp.ones((4, 2))}, {"w": PartitionSpec("data")}
        >>> tuple(nnopt.state_specs(nnopt.pruning.magnitude(0.5), params, specs).rest["w"]["mask"])
        ('data',)
    """
    leaves = flatten(params, is_node)
    by_path = _by_path(specs, leaves, "state_specs")

    def of_leaf(path: str, tree: Any) -> Any:
        if path == TOGETHER:
            return jax.tree.map(lambda x: PartitionSpec(), tree)
        shape, spec = tuple(leaves[path].shape), by_path[path]
        axes = tx.binding.of(path, shape)

        def of_array(names: Any, x: Any) -> PartitionSpec:
            side = _SIDES.get(getattr(names[-1], "key", "")) if names else None
            entries: tuple[Any, ...] = ()
            if side is None:
                entries = _like(x.shape, shape, spec)
            elif axes is not None:
                entries = _factor(x.shape, side, axes, shape, spec)
            return fit_spec(PartitionSpec(*entries), x.shape, mesh)

        return jax.tree_util.tree_map_with_path(of_array, tree)

    def of_part(part: dict[str, Any]) -> dict[str, Any]:
        return {path: of_leaf(path, tree) for path, tree in part.items()}

    return jax.tree.map(
        lambda state: State(of_part(state.learned), of_part(state.rest), PartitionSpec()),  # pyright: ignore
        abstract_state(tx, params),
        is_leaf=lambda x: isinstance(x, State),
    )


def _like(shape: Shape, leaf: Shape, spec: PartitionSpec) -> tuple[Any, ...]:
    """Return the spec of an array that has the axes of its leaf, such as a mask or scales."""
    if len(shape) != len(leaf) or not all(map(_is_coarser, shape, leaf)):
        return ()
    # If the last group is shorter, devices do not hold whole groups, so scales are replicated.
    even = [n == m or (n and m % n == 0) for n, m in zip(shape, leaf, strict=True)]
    return tuple(entry if whole else None for entry, whole in zip(spec, even, strict=False))


def _is_coarser(count: int, size: int) -> bool:
    """Return whether `size` entries divide into `count` groups; the last may be shorter."""
    return count == size or (0 < count <= size and -(-size // -(-size // count)) == count)


def _factor(
    shape: Shape, side: str, axes: Axes, leaf: Shape, spec: PartitionSpec
) -> tuple[Any, ...]:
    """Return the spec of a low-rank factor, `(*batch, in, rank)` or `(*batch, rank, out)`."""
    *batch, rows, columns = axes.matrix_shape(leaf)
    fits = shape[:-1] == (*batch, rows) if side == "in" else shape == (*batch, shape[-2], columns)
    if len(shape) != len(batch) + 2 or not fits:
        return ()
    split = (*spec, *(None for _ in range(len(leaf) - len(spec))))
    role = axes.contracted if side == "in" else axes.output
    own = split[role[0]] if len(role) == 1 else None
    last = (own, None) if side == "in" else (None, own)
    return (*(split[axis] for axis in axes.batch), *last)


def packed_specs(packed: Any, specs: Any, mesh: Mesh | None = None) -> Any:
    """Return partition specs for packed parameters, derived from those of dense ones.

    Args:
        packed: the result of `tx.pack`, or its shapes.
        specs: a `PartitionSpec` for each leaf of the dense parameters.
        mesh: if given, axes that do not divide an array are dropped for that array.

    Returns:
        The packed tree with a `PartitionSpec` in place of every array.

    Raises:
        SelectionError: a leaf has no spec.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec
        >>> import nnopt_jax as nnopt
        >>> params, specs = {"w": jnp.ones((4, 2))}, {"w": PartitionSpec("data")}
        >>> tx = nnopt.quantization.uniform(8)
        >>> packed = tx.pack(params, tx.init(params))
        >>> tuple(nnopt.packed_specs(packed, specs)["w"].codes)
        ('data',)
    """
    leaves = flatten(packed, is_node)
    by_path = _by_path(specs, leaves, "packed_specs")
    fitted = {path: field_specs(leaf, by_path[path], mesh) for path, leaf in leaves.items()}
    return unflatten(packed, fitted, is_node)
