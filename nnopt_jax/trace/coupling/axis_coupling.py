"""The dependency graph: axes of parameters that change together, found by tracing a function."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.columns import Tabular, aligned, counted
from nnopt_jax.errors import (
    CompositionError,
    Problems,
    SelectionError,
    ShapeError,
    ValueRangeError,
    nearest,
)
from nnopt_jax.trace.coupling.coupling_analysis import (
    Dimension,
    Place,
    analyze_coupling,
    dimensions,
    frozen_axes,
)
from nnopt_jax.trace.traced import Traced, arrays_of
from nnopt_jax.typing import Array, Params, Path, PyTree, Shape

Keep = Mapping[str, Any]
"""The units to keep, by the name of a dimension: a boolean for each unit, or unit numbers."""


def dimensions_of(
    caller: str, known: Sequence[Dimension], names: Iterable[str]
) -> dict[str, Dimension]:
    """Return the named dimensions; raise an error that lists all unknown names."""
    by_name, lost = {dimension.name: dimension for dimension in known}, Problems(caller)
    for name in names:
        if name not in by_name:
            lost.add("", f"{name!r} is not a dimension.{nearest(str(name), by_name)}")
    lost.raise_as(SelectionError)
    return {name: by_name[name] for name in names}


def select_units(
    caller: str, known: Sequence[Dimension], keep: Keep
) -> list[tuple[Dimension, np.ndarray]]:
    """Return each named dimension with a boolean mask of the units to keep."""
    found, wrong = [], Problems(caller)
    if not isinstance(keep, Mapping):
        raise ValueRangeError(
            f"{caller}: keep is a {type(keep).__name__}; give units by name of a dimension, as "
            "coupled.choose(coupled.scores(params), 0.5) does."
        )
    for name, dimension in dimensions_of(caller, known, keep).items():
        given = np.asarray(keep[name])
        units = np.zeros(dimension.size, bool)
        # A layer without units would pass nothing on.
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


def check_leaves(
    caller: str, shapes: Mapping[Path, Shape], params: Params, text: str = _LOST,
    packed: bool = False,
) -> dict[Path, Any]:  # fmt: skip
    """Return the leaves of a tree by path; raise if their shapes are wrong.

    Args:
        caller: the caller, for errors.
        shapes: the shape of each leaf by path.
        params: the tree.
        text: the message for leaves that are missing.
        packed: whether leaves may be packed.
    """
    leaves = arrays_of(params)
    lost, nodes, misfit = Problems(caller), Problems(caller), Problems(caller)
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


def coupled_axes(given: Traced) -> CoupledAxes:
    """Find the axes of a function's parameters that change together.

    Args:
        given: the traced function, which is not computed.
    """
    found = analyze_coupling(given)
    known = dimensions(found)
    return CoupledAxes(known, frozen_axes(found, known), found.shapes)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CoupledAxes(Tabular):
    """The dependency graph of the axes of leaves that change together, `graph.coupled`.

    A unit is a set of elements (leaf, axis, index) that can only be removed together: column j of a
    kernel, element j of its bias and row j of the next kernel; a channel with its normalization; a
    head. Masking a unit sets all its elements to zero. A unit is listed only if the function
    without its elements returns the same result as with those zeros. An axis that reaches the
    output, an input, or a step that needs all its elements is frozen, with the reason.

    Constants of the program do not change: a mean over a layer still divides by the number of units
    before removal, as in the model with zeros.

    Args:
        dimensions: sets of units of the same kind; single units of a set can be removed.
        frozen: maps (path, axis) to the reason why that axis cannot be made smaller.
        shapes: the shapes of the leaves.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"fc1": jnp.ones((3, 4)), "fc2": jnp.ones((4, 2))}
        >>> apply = lambda p, x: jax.nn.relu(x @ p["fc1"]) @ p["fc2"]
        >>> print(nnopt.graph(apply, params, jnp.ones((1, 3))).coupled)
        dimension  units  each  members
        fc1:1      4      2     fc1:1 fc2:0
        frozen  because
        fc1:0   input argument 2
        fc2:1   output

    References:
        Fang et al. 2023, DepGraph: Towards Any Structural Pruning, arXiv:2301.12900; applied here
        to single elements of the traced program.
    """

    dimensions: tuple[Dimension, ...]
    frozen: Mapping[Place, str]
    shapes: Mapping[Path, Shape]

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        axes = counted(len(self.frozen), "frozen axis", "frozen axes")
        return f"{counted(len(self.dimensions), 'dimension')}, {axes}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the dimensions."""
        return tuple(dimension.name for dimension in self.dimensions)

    def __getitem__(self, name: str) -> Dimension:
        """Return a dimension by name.

        Raises:
            SelectionError: the name is not known; the message lists the nearest ones.
        """
        return dimensions_of("graph.coupled", self.dimensions, [name])[name]

    def __str__(self) -> str:
        """Return a table of the dimensions, then of the frozen axes with their reasons."""
        cells = [("dimension", "units", "each", "members")]
        for found in self.dimensions:
            axes = [f"{path}:{axis}" for path, axis in found.members]
            if len(axes) > 5:
                axes[4:] = [f"and {len(axes) - 4} more"]
            cells.append((found.name, str(found.size), str(found.elements), " ".join(axes)))
        kept = [("frozen", "because")]
        kept += [(f"{path}:{axis}", why) for (path, axis), why in self.frozen.items()]
        return "\n".join([*aligned(cells), *(aligned(kept) if len(kept) > 1 else [])])

    def masks(self, keep: Keep, caller: str = "graph.coupled") -> dict[Place, np.ndarray]:
        """Return a mask of the remaining elements of each axis that loses some.

        Args:
            keep: the units to keep, by the name of a dimension: a boolean array (units,), or
                integer unit numbers.
            caller: the caller, for errors.

        Returns:
            By (path, axis) a boolean array with an entry for each element of the axis.

        Raises:
            SelectionError: a dimension is not known; the message lists all.
            ValueRangeError: units are not valid, or none would remain; the message lists all.
        """
        found: dict[Place, np.ndarray] = {}
        for dimension, units in select_units(caller, self.dimensions, keep):
            for place, at in dimension.indices.items():
                # Several dimensions may share an axis, such as heads and their inner dimensions.
                if place not in found:
                    found[place] = np.ones(self.shapes[place[0]][place[1]], bool)
                found[place][at[~units].ravel()] = False
        return {place: kept for place, kept in found.items() if not kept.all()}

    def leaves(self, params: Params, caller: str = "graph.coupled") -> dict[Path, Any]:
        """Return the leaves of a tree by path, after checking their shapes.

        Args:
            params: a tree.
            caller: the caller, for errors.

        Raises:
            SelectionError: leaves are missing or superfluous; the message lists all.
            ShapeError: a leaf has another shape than in the graph; the message lists all.
            CompositionError: a leaf is packed; the message lists all.
        """
        return check_leaves(caller, self.shapes, params)

    def scores(self, tree: PyTree, reduce: str = "sum") -> dict[str, Array]:
        """Reduce a score for each element to a score for each unit.

        Args:
            tree: a score for each element, such as `abs(weight)`, as a tree like the parameters.
            reduce: `"sum"`, `"mean"` or `"max"` over all elements of a unit.

        Returns:
            An array (units,) by the name of the dimension.

        Raises:
            SelectionError: leaves are missing or superfluous; the message lists all.
            ShapeError: a leaf has another shape than in the graph; the message lists all.
            ValueRangeError: `reduce` is not known.

        Example:
            >>> import jax.numpy as jnp
            >>> import nnopt_jax as nnopt
            >>> params = {"a": jnp.ones((3, 2)), "b": jnp.array([[1.0], [2.0]])}
            >>> coupled = nnopt.graph(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(3)).coupled
            >>> coupled.scores(params)
            {'a:1': Array([4., 5.], dtype=float32)}
        """
        if reduce not in ("sum", "mean", "max"):
            raise ValueRangeError(
                f"graph.coupled.scores: reduce={reduce!r} is not known; "
                "give 'sum', 'mean' or 'max'."
            )
        leaves = self.leaves(tree, "graph.coupled.scores")
        return {d.name: self._score(d, leaves, reduce) for d in self.dimensions}

    def _score(self, dimension: Dimension, leaves: Mapping[Path, Any], reduce: str) -> Array:
        parts, count = [], 0
        for (path, axis), at in dimension.indices.items():
            leaf = jnp.asarray(leaves[path])
            others = tuple(x for x in range(leaf.ndim) if x != axis)
            lines = leaf.max(others) if reduce == "max" else leaf.sum(others)
            parts.append(lines[at].max(1) if reduce == "max" else lines[at].sum(1))
            # The number of elements that one unit has, which is the same for all units.
            count += at.shape[1] * leaf.size // leaf.shape[axis]
        if reduce == "max":
            return jnp.stack(parts).max(0)
        return jnp.stack(parts).sum(0) / (count if reduce == "mean" else 1)

    def choose(
        self, scores: Mapping[str, Any], keep: float | Mapping[str, float], multiple: int = 1
    ) -> dict[str, np.ndarray]:
        """Choose the units with the highest scores in each dimension.

        Args:
            scores: an array (units,) by the name of a dimension.
            keep: the fraction of the units to keep, in (0, 1]; by the name of a dimension, or one
                for all.
            multiple: the number of units to keep is rounded up to a multiple of this, at most to
                all units; hardware prefers multiples of 8 or 128.

        Returns:
            A boolean array (units,) by name, for `graph.mask` and `graph.shrink`; at least one unit
            is kept.

        Raises:
            SelectionError: a dimension is not known; the message lists all.
            ValueRangeError: a fraction lies outside of (0, 1], or scores have another length; the
                message lists all.

        Example:
            >>> import jax.numpy as jnp
            >>> import nnopt_jax as nnopt
            >>> params = {"a": jnp.ones((3, 2)), "b": jnp.array([[1.0], [2.0]])}
            >>> coupled = nnopt.graph(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(3)).coupled
            >>> coupled.choose(coupled.scores(params), keep=0.5)
            {'a:1': array([False,  True])}
        """
        parts = keep if isinstance(keep, Mapping) else dict.fromkeys(scores, keep)
        dimensions_of("graph.coupled.choose", self.dimensions, scores)
        wrong, found = Problems("graph.coupled.choose"), {}
        for name, dimension in dimensions_of(
            "graph.coupled.choose", self.dimensions, parts
        ).items():
            part, values = parts[name], np.asarray(scores.get(name, ()))
            if values.shape != (dimension.size,):
                wrong.add(name, f"has {dimension.size} units, and scores of shape {values.shape}.")
            elif not isinstance(part, int | float) or not 0 < part <= 1:
                wrong.add(name, f"keep={part!r} is not a fraction; give one above 0, up to 1.")
            else:
                count = max(1, round(part * dimension.size))
                count = min(dimension.size, -(-count // multiple) * multiple)
                found[name] = np.zeros(dimension.size, bool)
                # A stable sort keeps the first of equal units on every platform.
                found[name][np.argsort(-values, kind="stable")[:count]] = True
        wrong.raise_as(ValueRangeError)
        return found
