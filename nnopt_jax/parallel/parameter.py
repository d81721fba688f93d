"""Parameter parallelism (FSDP, ZeRO): every device keeps a shard of every large array.

An array (parameters, masks, moments) is split along its largest free axis that the number of
devices divides, or else along an axis that a rule has split, if it divides its shards. The array
stays split between steps, and is gathered where it is used.

References: Rajbhandari et al., ZeRO, arXiv:1910.02054; Zhao et al., PyTorch FSDP, arXiv:2304.11277.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from nnopt_jax.parallel.meshes import axis_names, part_count
from nnopt_jax.tree.bit_counts import dtype_bits

KeyPath = tuple[Any, ...]


def split_fully(
    array: Any, spec: PartitionSpec, mesh: Mesh | AbstractMesh, axis: str, least: int
) -> tuple[PartitionSpec, str]:
    """Split an array along its largest free, divisible axis, else along one that is already split.

    Args:
        array: a value with a shape and a dtype.
        spec: its spec so far.
        mesh: the devices.
        axis: the mesh axis to split it along.
        least: arrays of fewer bytes are not split.

    Returns:
        The spec, and the reason: the name of the axis if the array was split, or the obstacle.

    Example:
        >>> import jax
        >>> import nnopt_jax as nnopt
        >>> from jax.sharding import PartitionSpec
        >>> from nnopt_jax.parallel.parameter import split_fully
        >>> mesh = nnopt.parallel.mesh(fsdp=4, model=2)
        >>> kernel = jax.ShapeDtypeStruct((12, 512), "float32")
        >>> split_fully(kernel, PartitionSpec(None, "model"), mesh, "fsdp", 1024)[1]
        'fsdp'
        >>> odd = jax.ShapeDtypeStruct((10, 3), "float32")
        >>> split_fully(odd, PartitionSpec(), mesh, "fsdp", 0)[1]
        'no axis of (10, 3) divides by 4'
    """
    shape, count = array.shape, mesh.shape[axis]
    if any(axis in axis_names(entry) for entry in spec):
        return spec, ""
    if 0 in shape:
        return spec, "empty"
    if math.prod(shape) * dtype_bits(array.dtype) < 8 * least:
        return spec, f"below {least:,} bytes"
    entries = [axis_names(entry) for entry in spec] + [()] * (len(shape) - len(spec))
    fits = [i for i, n in enumerate(shape) if n % (part_count(mesh, entries[i]) * count) == 0]
    if not fits:
        over = " further" if any(entries) else ""
        return spec, f"no axis of {shape} divides{over} by {count}"
    # A free axis can be gathered without gathering the other.
    chosen = max(fits, key=lambda i: (not entries[i], shape[i]))
    entries[chosen] = (*entries[chosen], axis)
    return without_trailing_none(
        [names[0] if len(names) == 1 else names or None for names in entries]
    ), axis


def without_trailing_none(entries: list[Any]) -> PartitionSpec:
    """Return a spec without trailing None entries, which JAX would treat as another spec."""
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def optimizer_specs(
    opt_state: Any,
    moved: Any,
    specs: Mapping[KeyPath, PartitionSpec],
    further: Callable[[Any, PartitionSpec], PartitionSpec] = lambda leaf, spec: spec,
) -> Any:
    """Return the specs of an optimizer's state, derived from those of the trained arrays.

    An array of the state with the path and the shape of a moved array gets its spec; an array that
    lacks some of the axes (factored moments) is split along those that it has. This works for any
    optax optimizer.

    Args:
        opt_state: the result of `optimizer.init`, or its shapes.
        moved: the `Trainable` that it was made for, or its shapes.
        specs: the spec of each of its arrays, by key path.
        further: a function that splits other arrays (factors, preconditioners, counts).

    Returns:
        A tree of the structure of the state with a `PartitionSpec` for each array.

    Example:
        >>> import jax, optax
        >>> from jax.sharding import PartitionSpec
        >>> from nnopt_jax.parallel.parameter import optimizer_specs
        >>> moved = {"w": jax.ShapeDtypeStruct((8, 4), "float32")}
        >>> state = jax.eval_shape(optax.adam(1e-3).init, moved)
        >>> by_path = {(jax.tree_util.DictKey("w"),): PartitionSpec("fsdp")}
        >>> tuple(optimizer_specs(state, moved, by_path)[0].mu["w"])
        ('fsdp',)
    """
    shapes = {keys: leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(moved)}

    def one(keys: KeyPath, leaf: Any) -> PartitionSpec:
        for start in range(len(keys)):
            shape = shapes.get(keys[start:])
            if shape == leaf.shape:
                return specs[keys[start:]]
            if shape is not None:
                return further(leaf, _factored_spec(leaf.shape, shape, specs[keys[start:]]))
        return further(leaf, PartitionSpec())

    return jax.tree_util.tree_map_with_path(one, opt_state)


def _factored_spec(
    shape: tuple[int, ...], whole: tuple[int, ...], spec: PartitionSpec
) -> PartitionSpec:
    """Return the spec of an array whose shape lacks some axes of another array's shape."""
    entries = [*spec, *[None] * (len(whole) - len(spec))]
    kept, at = [], 0
    for size in shape:
        while at < len(whole) and whole[at] != size:
            at += 1
        if at == len(whole):
            return PartitionSpec()
        kept.append(entries[at])
        at += 1
    return without_trailing_none(kept)
