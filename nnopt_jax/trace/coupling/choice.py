"""Validation of the units that users choose, before any weight is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.errors import (
    CompositionError,
    Problems,
    SelectionError,
    ShapeError,
    ValueRangeError,
    nearest,
)
from nnopt_jax.trace.coupling.dimension import Dimension
from nnopt_jax.trace.traced import arrays_of
from nnopt_jax.typing import Params, Path, Shape

Keep = Mapping[str, Any]
"""The units that stay, by the name of a dimension: a boolean for each unit, or their numbers."""


def dimensions_of(
    who: str, known: Sequence[Dimension], names: Iterable[str]
) -> dict[str, Dimension]:
    """Return dimensions by name; raise an error that lists all unknown names."""
    by_name, lost = {dimension.name: dimension for dimension in known}, Problems(who)
    for name in names:
        if name not in by_name:
            lost.add("", f"{name!r} is not a dimension.{nearest(str(name), by_name)}")
    lost.raise_as(SelectionError)
    return {name: by_name[name] for name in names}


def chosen(who: str, known: Sequence[Dimension], keep: Keep) -> list[tuple[Dimension, np.ndarray]]:
    """Return each named dimension with a boolean for each unit that is true where it stays."""
    found, wrong = [], Problems(who)
    if not isinstance(keep, Mapping):
        raise ValueRangeError(
            f"{who}: keep is a {type(keep).__name__}; give units by name of a dimension, as "
            "coupled.choose(coupled.scores(params), 0.5) does."
        )
    for name, dimension in dimensions_of(who, known, keep).items():
        given = np.asarray(keep[name])
        units = np.zeros(dimension.size, bool)
        if given.size == 0 or (given.dtype == bool and not given.any()):
            wrong.add(name, f"no unit of {dimension.size} is left; keep at least one.")
        elif given.dtype == bool:
            if given.shape != units.shape:
                shape = f"{given.shape}, where ({dimension.size},) is needed"
                wrong.add(name, f"booleans of shape {shape}.")
            else:
                units = given
        elif given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
            text = f"give booleans ({dimension.size},) or numbers of units"
            wrong.add(name, f"{given.dtype} of shape {given.shape}; {text}.")
        elif ((given < 0) | (given >= dimension.size)).any():
            wrong.add(name, f"units {given} are not all in 0..{dimension.size - 1}.")
        else:
            units[given] = True
        found.append((dimension, units))
    wrong.raise_as(ValueRangeError)
    return found


_LOST = "is missing; give the parameters that the graph was made of."


def checked(
    who: str, shapes: Mapping[Path, Shape], params: Params, text: str = _LOST, packed: bool = False
) -> dict[Path, Any]:
    """Return the leaves of a tree by path; raise if they do not have these shapes.

    Args:
        who: the caller, for errors.
        shapes: the shape of each leaf by path.
        params: the tree.
        text: the message for leaves that are missing.
        packed: whether leaves may be packed.
    """
    leaves = arrays_of(params)
    lost, nodes, misfit = Problems(who), Problems(who), Problems(who)
    for path in shapes:
        if path not in leaves:
            lost.add(path, text)
    for path, leaf in leaves.items():
        if path not in shapes:
            lost.add(path, f"is not a leaf of the graph.{nearest(path, shapes)}")
        elif is_node(leaf) and not packed:
            nodes.add(path, f"is a {type(leaf).__name__}; give nnopt.materialize(params).")
        elif tuple(leaf.shape) != shapes[path]:
            both = f"{tuple(leaf.shape)}, and {shapes[path]} in the graph"
            misfit.add(path, f"has shape {both}; make a graph of these parameters.")
    lost.raise_as(SelectionError)
    nodes.raise_as(CompositionError)
    misfit.raise_as(ShapeError)
    return leaves
