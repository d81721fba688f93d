"""Meshes of devices with named axes, and specs of arrays along them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from nnopt_jax.errors import CompositionError, SelectionError, ShapeError
from nnopt_jax.settings import Settings, is_whole
from nnopt_jax.transform.validation import described

BATCH_AXES = ("data", "fsdp")
"""The axes of a mesh, if it has them, over which the examples of a batch are split."""


def mesh(*, devices: Sequence[Any] | None = None, **axes: int) -> Mesh:
    """Return a mesh of devices with named axes.

    The axes are `AxisType.Auto`: models need no annotation. By default `data` splits the batch,
    `fsdp` the batch and the parameters, `model` the axes of parameters, `stage` the layers; rules
    may use any other name.

    Args:
        devices: the devices; by default all devices of all processes.
        **axes: the number of devices along each axis; -1 for one axis means the rest.

    Returns:
        The mesh; devices along the last axis are nearest to each other.

    Raises:
        ShapeError: the product of the sizes is not the number of devices, or a device occurs twice.
        ValueRangeError: a size is not a whole number of 1 or more (or -1, once).

    Example:
        >>> import nnopt_jax as nnopt
        >>> dict(nnopt.parallel.mesh(data=2, model=-1).shape)
        {'data': 2, 'model': 4}
        >>> nnopt.parallel.mesh(data=3, model=2)
        Traceback (most recent call last):
        nnopt_jax.errors.ShapeError: parallel.mesh: data=3 x model=2 takes 6 devices, and there \
are 8; change an axis, let one be -1, or give devices=jax.devices()[:6].
    """
    settings = Settings("parallel.mesh")
    if not axes:
        settings.wrong("axes", axes, "names no axis; give e.g. data=-1.")
    if list(axes.values()).count(-1) > 1:
        settings.wrong("axes", axes, "has more than one -1.")
    for name, size in axes.items():
        if not is_whole(size) or (size < 1 and size != -1):
            settings.wrong(name, size, "is not a whole number of 1 or more, or -1.")
    settings.done()
    devices = jax.devices() if devices is None else list(devices)
    if not devices or len(set(devices)) < len(devices):
        raise ShapeError("parallel.mesh: devices are none, or one is there twice.")
    given = math.prod(size for size in axes.values() if size != -1)
    sizes = {name: len(devices) // given if n == -1 else n for name, n in axes.items()}
    if math.prod(sizes.values()) != len(devices):
        written = " x ".join(f"{name}={size}" for name, size in axes.items())
        takes = "a multiple of " * (-1 in axes.values()) + str(given)
        some = f", or give devices=jax.devices()[:{given}]" if given <= len(devices) else ""
        raise ShapeError(
            f"parallel.mesh: {written} takes {takes} devices, and there are {len(devices)}; "
            f"change an axis, let one be -1{some}."
        )
    shape, names = tuple(sizes.values()), tuple(sizes)
    return jax.make_mesh(shape, names, (AxisType.Auto,) * len(names), devices=devices)


def part_count(mesh: Mesh | AbstractMesh, axes: Any) -> int:
    """Return the number of parts into which an entry of a `PartitionSpec` splits an axis.

    Example:
        >>> import nnopt_jax as nnopt
        >>> from nnopt_jax.parallel.meshes import part_count
        >>> mesh = nnopt.parallel.mesh(data=2, model=4)
        >>> part_count(mesh, None), part_count(mesh, "model"), part_count(mesh, ("data", "model"))
        (1, 4, 8)
    """
    return math.prod(mesh.shape[name] for name in axis_names(axes))


def shard_count(mesh: Mesh | AbstractMesh, spec: PartitionSpec) -> int:
    """Return the number of shards into which a `PartitionSpec` splits an array.

    Example:
        >>> from jax.sharding import PartitionSpec
        >>> import nnopt_jax as nnopt
        >>> from nnopt_jax.parallel.meshes import shard_count
        >>> mesh = nnopt.parallel.mesh(data=2, model=4)
        >>> (
        ...     shard_count(mesh, PartitionSpec("data", None, "model")),
        ...     shard_count(mesh, PartitionSpec()),
        ... )
        (8, 1)
    """
    return math.prod(part_count(mesh, entry) for entry in spec)


def axis_names(axes: Any) -> tuple[str, ...]:
    """Return the mesh axes that one entry of a `PartitionSpec` names."""
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def batch_spec(mesh: Mesh | AbstractMesh, axes: Sequence[str] | None, who: str) -> PartitionSpec:
    """Return the spec of a batch, split over `data` and `fsdp` or over the given axes.

    Raises:
        SelectionError: an axis does not exist, or is named twice.
    """
    if axes is None:
        axes = [name for name in BATCH_AXES if name in mesh.shape]
    axes = axis_names(axes)
    if len(set(axes)) < len(axes):
        raise SelectionError(f"{who}: batch axes {', '.join(axes)} name one axis twice.")
    if unknown := [name for name in axes if name not in mesh.shape]:
        raise SelectionError(
            f"{who}: batch axis {unknown[0]!r} is not in the mesh; its axes are "
            f"{', '.join(mesh.shape)}."
        )
    return PartitionSpec(tuple(axes)) if axes else PartitionSpec()


def constrain(tree: Any, mesh: Mesh, specs: Any) -> Any:
    """Constrain the sharding of the arrays of a tree inside of compiled code.

    The function works under the automatic axes that `automatic` provides on a mesh of any kind.

    Args:
        tree: any pytree of arrays.
        mesh: their mesh.
        specs: a `PartitionSpec` for each array, or one for all.

    Returns:
        The tree.
    """
    if isinstance(specs, PartitionSpec):
        specs = jax.tree.map(lambda _: specs, tree)
    mesh = with_automatic_axes(mesh)

    def one(spec: PartitionSpec, x: Any) -> Any:
        if x is None:
            return None
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return jax.tree.map(one, specs, tree, is_leaf=lambda x: isinstance(x, PartitionSpec))


def with_automatic_axes(mesh: Mesh) -> Mesh:
    """Return a mesh with the same devices and axis names, all axes of type Auto."""
    return Mesh(mesh.devices, mesh.axis_names)


def check_mesh(who: str, mesh: Any) -> None:
    """Raise if a value is not a mesh."""
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise CompositionError(
            f"{who}: mesh is {described(mesh)}; give nnopt.parallel.mesh(data=-1), or any "
            "jax.sharding.Mesh."
        )


def mesh_context(mesh: Mesh) -> AbstractContextManager[Any]:
    """Return a context that sets a mesh, if the caller has set another one."""
    around = jax.sharding.get_abstract_mesh()
    if around.empty or around == mesh.abstract_mesh:
        return contextlib.nullcontext()
    return jax.set_mesh(mesh)


def wait_if_simulated(mesh: Mesh, tree: Any) -> Any:
    """Wait for the arrays of a tree if the devices of the mesh are simulated by a CPU.

    All simulated devices share the threads of the processor. The next program can take the threads
    that a waiting program needs for its peers, and both then wait forever.
    """
    simulated = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    return jax.block_until_ready(tree) if simulated else tree


def named_shardings(mesh: Mesh, specs: Any) -> Any:
    """Return a tree with a `NamedSharding` in place of every `PartitionSpec`."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )
