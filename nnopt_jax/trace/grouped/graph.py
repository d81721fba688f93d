"""Which axes of which leaves change together, read off a function of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from nnopt_jax.columns import aligned
from nnopt_jax.errors import Problems, ValueRangeError
from nnopt_jax.trace.grouped.analysis import Outputs, Place, analyse
from nnopt_jax.trace.grouped.choice import Keep, checked, chosen, dimensions_of
from nnopt_jax.trace.grouped.dimension import Dimension, dimensions, frozen
from nnopt_jax.trace.traced import require_function
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.typing import Array, Params, Path, PyTree, Shape


def everything(found: Any) -> Any:
    """All that a function returns."""
    return found


def groups(
    apply: Callable[..., Any],
    params: Params,
    *args: Any,
    outputs: Outputs = everything,
    **kwargs: Any,
) -> Groups:
    """Reads off a function which axes of its parameters change together.

    A unit is a set of elements (leaf, axis, index) that can be removed only together: column j of
    a kernel, element j of its bias, row j of the next kernel. That is found by following every
    element through the program that JAX traces, in whatever way the function is written. Removing
    a unit is meant as zeros in place of all its elements, and only those units are listed whose
    removal from all arrays computes the same as those zeros. What reaches the output, an input, or
    a step that needs an axis whole, is frozen, with the reason.

    Numbers that the program brings stay: a mean over a layer still divides by the number of units
    it had, as it does in the model with zeros.

    Args:
        apply: any function that JAX can trace, of parameters first.
        params: a tree of arrays; of these and of other arguments shapes and dtypes will do
            (`jax.ShapeDtypeStruct`).
        *args: its further arguments. Sizes of batches and lengths of sequences do not matter.
        outputs: of what the function returns, the part that must keep its widths; running
            statistics that come beside, say, may shrink with their layers.
        **kwargs: its keyword arguments.

    Returns:
        The `Groups`: what can be made smaller, and why the rest cannot.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"fc1": jnp.ones((3, 4)), "fc2": jnp.ones((4, 2))}
        >>> print(
        ...     nnopt.groups(
        ...         lambda p, x: jax.nn.relu(x @ p["fc1"]) @ p["fc2"], params, jnp.ones((1, 3))
        ...     )
        ... )
        dimension  units  each  members
        fc1:1      4      2     fc1:1 fc2:0
        frozen  because
        fc1:0   input argument 2
        fc2:1   output

    Source: Fang et al. 2023, DepGraph: Towards Any Structural Pruning, arXiv:2301.12900; here by
    elements, of the traced program.
    """
    require_function("groups", apply)
    found = analyse(apply, (params, *args), kwargs, outputs)
    known = dimensions(found)
    return Groups(known, frozen(found, known), found.shapes, outputs)


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """What `groups` found.

    Args:
        dimensions: what can be made smaller.
        frozen: why other axes cannot, by (path, axis).
        shapes: of the leaves that were read.
        outputs: the part of what the function returns that keeps its widths.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.Groups((), {}, {}, lambda found: found).names
        ()
    """

    dimensions: tuple[Dimension, ...]
    frozen: Mapping[Place, str]
    shapes: Mapping[Path, Shape]
    outputs: Outputs = dataclasses.field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the dimensions."""
        return tuple(dimension.name for dimension in self.dimensions)

    def __getitem__(self, name: str) -> Dimension:
        """A dimension by name.

        Raises:
            SelectionError: there is none of this name; the nearest are named.
        """
        return dimensions_of("groups", self.dimensions, [name])[name]

    def __str__(self) -> str:
        """The table: what can be made smaller, then what cannot, and why."""
        cells = [("dimension", "units", "each", "members")]
        for found in self.dimensions:
            told = [f"{path}:{axis}" for path, axis in found.members]
            more = f" and {len(told) - 4} more" if len(told) > 5 else ""
            told = told[:4] if more else told
            cells.append((found.name, str(found.size), str(found.elements), " ".join(told) + more))
        kept = [("frozen", "because")]
        kept += [(f"{path}:{axis}", why) for (path, axis), why in self.frozen.items()]
        return "\n".join([*aligned(cells), *(aligned(kept) if len(kept) > 1 else [])])

    def kept(self, keep: Keep, who: str = "groups") -> dict[Place, np.ndarray]:
        """Where elements are left, of the axes that lose some.

        Args:
            keep: by name of a dimension the units that stay, as booleans for all or as numbers.
            who: asks, for errors.

        Returns:
            By (path, axis) a boolean array.

        Raises:
            SelectionError: a dimension is not known; all are named.
            ValueRangeError: units are given wrongly, or none would be left; all are named.
        """
        found: dict[Place, np.ndarray] = {}
        for dimension, units in chosen(who, self.dimensions, keep):
            for place, at in dimension.indices.items():
                if place not in found:
                    found[place] = np.ones(self.shapes[place[0]][place[1]], bool)
                found[place][at[~units].ravel()] = False
        return {place: kept for place, kept in found.items() if not kept.all()}

    def mask(self, params: Params, keep: Keep) -> Params:
        """Parameters with zeros in place of all elements of removed units.

        Args:
            params: arrays, of the shapes that were read.
            keep: by name of a dimension the units that stay, as booleans for all or as numbers.

        Returns:
            A tree of the same structure and shapes.

        Raises:
            SelectionError: a dimension or a leaf is not known; all are named.
            ShapeError: a leaf has another shape; all are named.
            ValueRangeError: units are given wrongly, or none would be left; all are named.

        Example:
            >>> import jax.numpy as jnp
            >>> import nnopt_jax as nnopt
            >>> params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 1))}
            >>> graph = nnopt.groups(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(3))
            >>> graph.mask(params, {"a:1": [0]})["a"][0]
            Array([1., 0.], dtype=float32)
        """
        leaves = dict(self.leaves(params, "groups.mask"))
        for (path, axis), kept in self.kept(keep, "groups.mask").items():
            shape = (-1,) + (1,) * (len(self.shapes[path]) - axis - 1)
            leaf = jnp.asarray(leaves[path])
            along = jnp.broadcast_to(kept.reshape(shape), leaf.shape)
            leaves[path] = jnp.where(along, leaf, jnp.zeros((), leaf.dtype))
        return unflatten(params, flatten(params) | leaves)

    def permute(self, params: Params, order: Mapping[str, Any]) -> Params:
        """Parameters with units in another order; what they compute stays.

        Args:
            params: arrays, of the shapes that were read.
            order: by name of a dimension which unit comes to each place: a permutation.

        Returns:
            A tree of the same structure and shapes.

        Raises:
            SelectionError: a dimension or a leaf is not known; all are named.
            ShapeError: a leaf has another shape; all are named.
            ValueRangeError: an order is no permutation, or its units differ by more than their
                parameters; all are named.

        Example:
            >>> import jax.numpy as jnp
            >>> import nnopt_jax as nnopt
            >>> params = {"a": jnp.arange(6.0).reshape(3, 2), "b": jnp.array([[1.0], [2.0]])}
            >>> graph = nnopt.groups(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(3))
            >>> graph.permute(params, {"a:1": [1, 0]})["b"].ravel()
            Array([2., 1.], dtype=float32)
        """
        leaves = dict(self.leaves(params, "groups.permute"))
        known = dimensions_of("groups.permute", self.dimensions, order)
        wrong = Problems("groups.permute")
        for name, dimension in known.items():
            moved = np.asarray(order[name])
            if not np.array_equal(np.sort(moved), np.arange(dimension.size)):
                wrong.add(name, f"is no permutation of {dimension.size} units.")
            elif not dimension.exchangeable:
                wrong.add(name, "its units meet constants that differ; they cannot change places.")
        wrong.raise_as(ValueRangeError)
        for name, dimension in known.items():
            for (path, axis), at in dimension.indices.items():
                new = np.arange(self.shapes[path][axis])
                new[at.ravel()] = at[np.asarray(order[name])].ravel()
                leaves[path] = jnp.take(jnp.asarray(leaves[path]), new, axis)
        return unflatten(params, flatten(params) | leaves)

    def leaves(self, params: Params, who: str = "groups") -> dict[Path, Any]:
        """The leaves by path.

        Args:
            params: a tree.
            who: asks, for errors.

        Raises:
            SelectionError: leaves are missing, or are too many; all are named.
            ShapeError: a leaf has another shape than was read; all are named.
            CompositionError: a leaf is no array but an expression; all are named.
        """
        return checked(who, self.shapes, params)

    def scores(self, tree: PyTree, reduce: str = "sum") -> dict[str, Array]:
        """One number for each unit, of numbers for each element.

        Args:
            tree: of the structure of the parameters: a score for each element, as `abs(weight)`.
            reduce: `"sum"`, `"mean"` or `"max"` over all elements of a unit.

        Returns:
            By name of the dimension an array (units,).

        Raises:
            SelectionError: leaves are missing, or are too many; all are named.
            ShapeError: a leaf has another shape than was read; all are named.
            ValueRangeError: `reduce` is not known.

        Example:
            >>> import jax.numpy as jnp
            >>> import nnopt_jax as nnopt
            >>> params = {"a": jnp.ones((3, 2)), "b": jnp.array([[1.0], [2.0]])}
            >>> graph = nnopt.groups(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(3))
            >>> graph.scores(params)
            {'a:1': Array([4., 5.], dtype=float32)}
        """
        if reduce not in ("sum", "mean", "max"):
            raise ValueRangeError(
                f"groups.scores: reduce={reduce!r} is not known; give 'sum', 'mean' or 'max'."
            )
        leaves = self.leaves(tree, "groups.scores")
        return {d.name: self._score(d, leaves, reduce) for d in self.dimensions}

    def _score(self, dimension: Dimension, leaves: Mapping[Path, Any], reduce: str) -> Array:
        parts, count = [], 0
        for (path, axis), at in dimension.indices.items():
            leaf = jnp.asarray(leaves[path])
            others = tuple(x for x in range(leaf.ndim) if x != axis)
            lines = leaf.max(others) if reduce == "max" else leaf.sum(others)
            parts.append(lines[at].max(1) if reduce == "max" else lines[at].sum(1))
            count += at.shape[1] * leaf.size // leaf.shape[axis]
        if reduce == "max":
            return jnp.stack(parts).max(0)
        return jnp.stack(parts).sum(0) / (count if reduce == "mean" else 1)

    def choose(
        self, scores: Mapping[str, Any], keep: float | Mapping[str, float], multiple: int = 1
    ) -> dict[str, np.ndarray]:
        """The units of highest score.

        Args:
            scores: by name of a dimension an array (units,).
            keep: which part of the units stays, in (0, 1]; by name of a dimension, or one for all.
            multiple: counts that stay are rounded up to a multiple of it, as far as there are so
                many; hardware likes multiples of 8 or 128.

        Returns:
            By name a boolean array (units,), as `mask` and `shrink` take it; at least one unit
            stays.

        Raises:
            SelectionError: a dimension is not known; all are named.
            ValueRangeError: a part lies outside of (0, 1], or scores are of another length; all are
                named.

        Example:
            >>> import jax.numpy as jnp
            >>> import nnopt_jax as nnopt
            >>> params = {"a": jnp.ones((3, 2)), "b": jnp.array([[1.0], [2.0]])}
            >>> graph = nnopt.groups(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(3))
            >>> graph.choose(graph.scores(params), keep=0.5)
            {'a:1': array([False,  True])}
        """
        parts = keep if isinstance(keep, Mapping) else dict.fromkeys(scores, keep)
        dimensions_of("groups.choose", self.dimensions, scores)
        wrong, found = Problems("groups.choose"), {}
        for name, dimension in dimensions_of("groups.choose", self.dimensions, parts).items():
            part, values = parts[name], np.asarray(scores.get(name, ()))
            if values.shape != (dimension.size,):
                wrong.add(name, f"has {dimension.size} units, and scores of shape {values.shape}.")
            elif not isinstance(part, int | float) or not 0 < part <= 1:
                wrong.add(name, f"keep={part!r} is no part of the whole; give one in (0, 1].")
            else:
                count = max(1, round(part * dimension.size))
                count = min(dimension.size, -(-count // multiple) * multiple)
                found[name] = np.zeros(dimension.size, bool)
                found[name][np.argsort(-values, kind="stable")[:count]] = True
        wrong.raise_as(ValueRangeError)
        return found
