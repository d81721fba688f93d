"""Tensor parallelism that follows from the model: coupled axes are split together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from nnopt_jax.parallel.tensor import Ruled
from nnopt_jax.trace import Dimension, Graph


def by_graph(
    leaves: Mapping[str, Any], graph: Graph, mesh: Mesh | AbstractMesh, axis: str
) -> dict[str, Ruled]:
    """Split the hidden units and heads of a model over a mesh axis.

    Axes that change together lie together: a kernel that makes hidden units is split along its
    output axis, the next one along its contracted axis, and a sum over devices follows. Outer axes
    come before inner ones (heads before the entries of a head), and dimensions of few leaves before
    those of many; each leaf is split once. What normalization or scores count over (the residual
    stream, the entries of a head) stays whole.

    Args:
        leaves: arrays or nodes by path.
        graph: of the model.
        mesh: the devices.
        axis: the mesh axis.

    Returns:
        By path, how leaves are split; leaves that no dimension splits are left out.

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
    """How many dimensions lie further out along axes of the same role in one leaf."""
    counts = [0]
    for path, axis in dimension.members:
        axes = graph.axes.get(path)
        roles = (axes.contracted, axes.output) if axes else ()
        outer = {(path, a) for role in roles if axis in role for a in role if a < axis}
        counts.append(sum(any(m in outer for m in other.members) for other in others))
    return max(counts)


def _is_cut_evenly(dimension: Dimension, path: str, axis: int, parts: int) -> bool:
    """Whether equal parts of an axis hold whole units, the same ones in every leaf."""
    at = dimension.indices[path, axis]
    order = np.argsort(at.ravel(), kind="stable")
    own = np.repeat(np.arange(dimension.size), at.shape[1])[order]
    if math.prod(at.shape) % parts or (np.sort(at.ravel()) != np.arange(at.size)).any():
        return False
    cut = dimension.size // parts
    return bool((own.reshape(parts, -1) // cut == np.arange(parts)[:, None]).all())
