"""Tensor parallelism: axes of leaves along mesh axes, by rules, annotations or the graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from nnopt_jax.errors import Problems, SelectionError, ShapeError, nearest
from nnopt_jax.parallel.meshes import axis_names, part_count
from nnopt_jax.trace import Dimension, Graph
from nnopt_jax.tree.paths import flatten
from nnopt_jax.tree.select import Where, resolve, selector

Rule = tuple[Where, Any]
"""A selector of leaves, and their `PartitionSpec` or its entries; None replicates them."""


class Ruled(NamedTuple):
    """The split of a leaf by tensor parallelism.

    Args:
        spec: the spec of the leaf.
        reason: the origin of the split, for tables; empty without one.
        pinned: whether the leaf is replicated, whatever else applies.
    """

    spec: PartitionSpec
    reason: str = ""
    pinned: bool = False


def by_rules(
    leaves: Mapping[str, Any], rules: Sequence[Rule], mesh: Mesh | AbstractMesh, who: str
) -> dict[str, Ruled]:
    """Split leaves by rules; the first rule that matches a leaf applies.

    Args:
        leaves: arrays or nodes by path.
        rules: `(where, spec)` pairs.
        mesh: the mesh, whose axes the specs name.
        who: the caller, for errors.

    Returns:
        The splits by path.

    Raises:
        SelectionError: rules do not match a leaf, or only leaves of earlier rules.
        ShapeError: specs name unknown axes, one axis twice, more axes than a leaf has, or split
            an axis into parts of different sizes. All are listed.
    """
    found: dict[str, Ruled] = {}
    dead, wrong = Problems(who), Problems(who)
    for number, rule in enumerate(rules, 1):
        where, spec = _pair(rule, number, who)
        try:
            matched = resolve(where, leaves, who)
        except SelectionError as error:
            dead.add("", str(error).removeprefix(f"{who}: ").replace("rule", f"rule {number}", 1))
            continue
        fresh = [path for path in matched if path not in found]
        if not fresh:
            dead.add("", f"rule {number} {selector(where).text} only matches leaves that earlier "
                         "rules have; put it before them, or drop it"
                    )  # fmt: skip
        for path in fresh:
            found[path] = Ruled(
                PartitionSpec() if spec is None else spec, f"rule {number}", spec is None
            )
            _check(path, leaves[path].shape, found[path], mesh, wrong)
    dead.raise_as(SelectionError)
    wrong.raise_as(ShapeError)
    return found


def by_annotation(
    leaves: Mapping[str, Any], annotations: Any, mesh: Mesh | AbstractMesh, who: str
) -> dict[str, Ruled]:
    """Split leaves by the annotations of a model.

    Args:
        leaves: arrays or nodes by path.
        annotations: a tree of the parameters' structure of `PartitionSpec` or None, such as
            `flax.linen.get_partition_spec` and `flax.nnx.get_partition_spec` return.
        mesh: the mesh, whose axes the specs name.
        who: the caller, for errors.

    Returns:
        The splits by path, without leaves that have no annotation or an empty one.

    Raises:
        SelectionError: an annotation does not belong to a leaf.
        ShapeError: see `by_rules`.
    """
    given = flatten(annotations, lambda x: x is None or isinstance(x, PartitionSpec))
    unknown, wrong = Problems(who), Problems(who)
    found = {}
    for path, spec in given.items():
        if path not in leaves:
            unknown.add(path, f"is annotated, and no leaf.{nearest(path, leaves)}")
        elif not isinstance(spec, PartitionSpec | None):
            unknown.add(path, f"is annotated by {spec!r}; give a PartitionSpec or None")
        elif spec is not None and any(spec):
            found[path] = Ruled(spec, "annotation")
            _check(path, leaves[path].shape, found[path], mesh, wrong)
    unknown.raise_as(SelectionError)
    wrong.raise_as(ShapeError)
    return found


def _pair(rule: Any, number: int, who: str) -> tuple[Where, PartitionSpec | None]:
    if not (isinstance(rule, tuple | list) and len(rule) == 2):
        raise SelectionError(
            f"{who}: rule {number} is {rule!r}; give a pair such as "
            "('**/kernel', PartitionSpec(None, 'model'))."
        )
    where, spec = rule
    if spec is None or isinstance(spec, PartitionSpec):
        return where, spec
    if not isinstance(spec, tuple | list):
        raise SelectionError(
            f"{who}: rule {number} splits by {spec!r}; give a PartitionSpec, a tuple of its "
            "entries, or None for whole."
        )
    entries = [tuple(entry) if isinstance(entry, list) else entry for entry in spec]
    for entry in entries:
        names = (entry,) if entry is None or isinstance(entry, str) else entry
        if not isinstance(names, tuple) or not all(isinstance(n, str | None) for n in names):
            raise SelectionError(
                f"{who}: rule {number} splits by {entry!r}; an entry is the name of a mesh axis, "
                "a tuple of names, or None."
            )
    return where, PartitionSpec(*entries)


def _check(
    path: str, shape: tuple[int, ...], ruled: Ruled, mesh: Mesh | AbstractMesh, wrong: Problems
) -> None:
    """Add a problem for each mistake in the spec of a leaf, which JAX would ignore silently."""
    spec, by = ruled.spec, ruled.reason
    names = [name for entry in spec for name in axis_names(entry)]
    for name in sorted(set(names)):
        if name not in mesh.shape:
            wrong.add(path, f"{by} names the mesh axis {name!r}.{nearest(name, mesh.shape)}")
        elif names.count(name) > 1:
            wrong.add(path, f"{by} names the mesh axis {name!r} {names.count(name)} times; "
                            "one array axis can have it"
                     )  # fmt: skip
    if len(spec) > len(shape):
        wrong.add(path, f"{by} splits {len(spec)} axes, and the leaf has {len(shape)}: {shape}")
        return
    for axis, (size, entry) in enumerate(zip(shape, spec, strict=False)):
        if any(name not in mesh.shape for name in axis_names(entry)):
            continue
        if size % part_count(mesh, entry):
            wrong.add(path, f"{by} splits axis {axis} of size {size} into "
                            f"{part_count(mesh, entry)} ({entry}); choose an axis that it "
                            "divides, or None for whole"
                     )  # fmt: skip


def by_graph(
    leaves: Mapping[str, Any], graph: Graph, mesh: Mesh | AbstractMesh, axis: str
) -> dict[str, Ruled]:
    """Split the hidden units and heads of a model over a mesh axis.

    Coupled axes are split together: a kernel that produces hidden units is split along its output
    axis, the next kernel along its contracted axis, and a sum over devices follows. Outer axes are
    split before inner ones (heads before the entries of a head), and dimensions of few leaves
    before those of many; each leaf is split once. Axes that normalization or attention scores sum
    over (the residual stream, the entries of a head) are replicated.

    Args:
        leaves: arrays or nodes by path.
        graph: the graph of the model.
        mesh: the devices.
        axis: the mesh axis.

    Returns:
        The splits by path, without leaves that no dimension splits.

    References:
        Shoeybi et al. 2019, Megatron-LM, section 3.
    """
    parts, found = mesh.shape[axis], {}
    dimensions = [d for d in graph.coupled.dimensions if not d.counted and d.size % parts == 0]
    order = {d.name: (_depth(d, dimensions, graph), len(d.members)) for d in dimensions}
    for dimension in sorted(dimensions, key=lambda d: order[d.name]):
        members = {path: at for path, at in dimension.members if path in leaves}
        if len(members) != len(dimension.members) or members.keys() & found.keys():
            continue
        if all(_is_cut_evenly(dimension, path, at, parts) for path, at in members.items()):
            found |= {
                path: Ruled(PartitionSpec(*[None] * at, axis), dimension.name)
                for path, at in members.items()
            }
    return found


def _depth(dimension: Dimension, others: Sequence[Dimension], graph: Graph) -> int:
    """Return the number of dimensions that lie on outer axes of the same role in a leaf."""
    counts = [0]
    for path, axis in dimension.members:
        axes = graph.axes.get(path)
        roles = (axes.contracted, axes.output) if axes else ()
        outer = {(path, a) for role in roles if axis in role for a in role if a < axis}
        counts.append(sum(any(m in outer for m in other.members) for other in others))
    return max(counts)


def _is_cut_evenly(dimension: Dimension, path: str, axis: int, parts: int) -> bool:
    """Return whether an even split of an axis keeps units whole, and the same in every leaf."""
    at = dimension.indices[path, axis]
    order = np.argsort(at.ravel(), kind="stable")
    own = np.repeat(np.arange(dimension.size), at.shape[1])[order]
    if math.prod(at.shape) % parts or (np.sort(at.ravel()) != np.arange(at.size)).any():
        return False
    cut = dimension.size // parts
    return bool((own.reshape(parts, -1) // cut == np.arange(parts)[:, None]).all())
