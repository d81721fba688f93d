"""Growth of networks: more units along coupled axes, without changing the function."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.nodes import is_node, materialize, summary
from nnopt_jax.errors import (
    CompositionError,
    Problems,
    SelectionError,
    ShapeError,
    ValueRangeError,
)
from nnopt_jax.settings import Settings
from nnopt_jax.trace import CoupledAxes, Dimension, Graph
from nnopt_jax.transfer.structure.place import gather_axis
from nnopt_jax.transfer.structure.widening import units_to_copy, with_copies, with_outgoing
from nnopt_jax.transform.validation import check_key, check_values
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.typing import Array, Key, Params

_NAME = "transfer.grow"


def grow(
    graph: Graph,
    params: Params,
    widths: Mapping[str, int],
    *,
    key: Key,
    incoming: Literal["copy", "random"] = "copy",
    noise: float = 0.1,
) -> Params:
    """Add units to coupled axes without changing the function of the network.

    This is `widen` with leaves that the graph finds: producers of the units (kernels, biases,
    scales and statistics of a batch normalization, both halves of a gated layer) get copies of
    randomly drawn units, and consumers get zeros. The network of the new widths computes the same
    as the old one, up to the order of longer sums in the backend, unless it uses its widths for
    other purposes.

    Args:
        graph: the result of `nnopt.graph` for the function and these parameters.
        params: arrays or packed leaves; leaves that grow become arrays.
        widths: the new number of units, by the name of a dimension of `graph.coupled`.
        key: the key of the copies and the noise.
        incoming: see `widen`.
        noise: the noise added to copied kernels, times their standard deviation, so that copies
            diverge in training.

    Returns:
        Parameters of the new shapes, for the model built with the new widths. On an axis of several
        parts (heads, halves of a gate, channels flattened with positions), new units follow the old
        ones of each part.

    Raises:
        SelectionError: a dimension is unknown.
        ShapeError: a leaf has another shape than in the graph.
        ValueRangeError: a width is not above the number of units, or a setting is wrong.
        CompositionError: more units would change the function, because no weights consume them,
            statistics are computed over them (layer normalization, attention scores), or they are
            combined with different constants; or two dimensions are nested. All are named.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> apply = lambda p, x: jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"]
        >>> params = {"up": jnp.ones((3, 4)), "bias": jnp.ones(4), "down": jnp.ones((4, 2))}
        >>> graph = nnopt.graph(apply, params, jnp.ones(3))
        >>> wide = nnopt.transfer.grow(graph, params, {"up:1": 6}, key=jax.random.key(0))
        >>> jax.tree.map(jnp.shape, wide)
        {'bias': (6,), 'down': (6, 2), 'up': (3, 6)}
        >>> apply(wide, jnp.ones(3))
        Array([16., 16.], dtype=float32)

    References:
        Chen et al. 2016, Net2Net, arXiv:1511.05641, section 2.2; Evci et al. 2022, GradMax,
        arXiv:2201.05125, section 3. The dimensions: see `nnopt.graph`.
    """
    settings = Settings(_NAME)
    settings.choice("incoming", incoming, ("copy", "random"))
    settings.number("noise", noise, 0)
    settings.done()
    check_key(_NAME, key)
    if not isinstance(graph, Graph):
        raise CompositionError(
            f"{_NAME}: graph is a {type(graph).__name__}; give nnopt.graph(apply, params, *inputs)."
        )
    coupled = graph.coupled
    chosen, every = {name: coupled[name] for name in widths}, flatten(params, is_node)
    named = sorted({path for dimension in chosen.values() for path, _ in dimension.indices})
    _check_leaves(every, coupled, named)
    _check_widths(chosen, widths)
    spans, copied, keys = _spans(chosen, named), {}, jax.random.split(key, 1 + len(named))
    for at, (name, dimension) in enumerate(chosen.items()):
        draw = jax.random.fold_in(keys[0], at)
        copied[name] = units_to_copy(draw, dimension.size, widths[name])

    def widen_span(key: Key, leaf: Array, span: _Span) -> Array:
        axis, units = span.axis, copied[span.name]
        part = jax.lax.slice_in_dim(leaf, span.start, span.stop, axis=axis)
        before, after = part.shape[:axis], part.shape[axis + 1 :]
        part = part.reshape(*before, span.outer, span.units, span.inner, *after)
        if span.is_consumed:
            part = with_outgoing(part, units, axis + 1, "zero")
        else:
            noisy = noise if leaf.ndim > 1 else None
            part = with_copies(key, part, units, axis + 1, incoming, noisy)
        return part.reshape(*before, -1, *after)

    def widen_leaf(path: str, key: Key, leaf: Array) -> Array:
        by_axis = itertools.groupby(spans[path], key=lambda span: span.axis)
        axes = [list(own) for _, own in by_axis]
        # Consumers of new units are zero in the entries of other new units, too, so they come last.
        for own in sorted(axes, key=lambda own: own[0].is_consumed):
            axis = own[0].axis
            leaf, parts, done = gather_axis(leaf, axis), [], 0
            for span in own:
                key, draw = jax.random.split(key)
                parts += [jax.lax.slice_in_dim(leaf, done, span.start, axis=axis)]
                parts += [widen_span(draw, leaf, span)]
                done = span.stop
            rest = jax.lax.slice_in_dim(leaf, done, leaf.shape[axis], axis=axis)
            leaf = jnp.concatenate([*parts, rest], axis)
        return leaf

    grown = {
        path: widen_leaf(path, own, materialize(every[path]))
        for path, own in zip(named, keys[1:], strict=True)
    }
    return unflatten(params, every | grown, is_node)


class _Span(NamedTuple):
    """The place of units along an axis: a block (outer, units, inner) that begins at `start`."""

    axis: int
    start: int
    outer: int
    units: int
    inner: int
    name: str
    is_consumed: bool

    @property
    def stop(self) -> int:
        return self.start + self.outer * self.units * self.inner


def _spans(chosen: Mapping[str, Dimension], paths: Sequence[str]) -> dict[str, list[_Span]]:
    """Return the spans of units in each leaf by path, sorted by axis and start."""
    found: dict[str, list[_Span]] = {path: [] for path in paths}
    wrong = Problems(_NAME)
    for name, dimension in chosen.items():
        for (path, axis), at in dimension.indices.items():
            at = np.sort(at, 1)
            start, units, each = int(at.min()), *at.shape
            # The length of the first run of consecutive positions of unit 0.
            inner = int((np.diff(at[0], append=-1) != 1).argmax()) + 1
            span = _Span(axis, start, each // inner, units, inner, name,
                         (path, axis) in dimension.consumed)  # fmt: skip
            whole_run = np.arange(start, span.stop).reshape(span.outer, units, -1)
            if np.array_equal(whole_run.swapaxes(0, 1).reshape(units, -1), at):
                found[path].append(span)
            else:
                wrong.add(name, f"its units are not in an even order along axis {axis} of {path}.")
    for path, spans in found.items():
        spans.sort()
        for one, other in itertools.pairwise(spans):
            if one.axis == other.axis and other.start < one.stop:
                wrong.add(path, f"{one.name} and {other.name} lie within each other along axis "
                                f"{one.axis}; let one grow, and read the new network.")  # fmt: skip
    wrong.raise_as(CompositionError)
    return found


def _check_leaves(leaves: Mapping[str, Any], coupled: CoupledAxes, paths: Sequence[str]) -> None:
    """Raise if leaves are missing, or have other shapes than in the graph."""
    lost, misfit = Problems(_NAME), Problems(_NAME)
    for path in paths:
        if path not in leaves:
            lost.add(path, "is missing; give the parameters that the graph was made of.")
        elif tuple(jnp.shape(leaves[path])) != coupled.shapes[path]:
            misfit.add(
                path, f"is {summary(leaves[path])}, and {coupled.shapes[path]} in the graph."
            )
    lost.raise_as(SelectionError)
    misfit.raise_as(ShapeError)
    check_values(_NAME, {path: leaves[path] for path in paths})


def _check_widths(chosen: Mapping[str, Dimension], widths: Mapping[str, int]) -> None:
    """Raise if widths are too small, or if more units would change the function."""
    small, fixed = Problems(_NAME), Problems(_NAME)
    for name, dimension in chosen.items():
        if type(widths[name]) is not int or widths[name] <= dimension.size:
            small.add(name, f"width {widths[name]!r} is not above the {dimension.size} units "
                            "there are.")  # fmt: skip
        if dimension.counted:
            fixed.add(name, "something takes a number over all of its units (layer normalization, "
                            "scores of attention), which more units would change.")  # fmt: skip
        elif not dimension.consumed:
            fixed.add(name, "no weights read its units; nothing would keep new ones silent.")
        elif not dimension.exchangeable:
            fixed.add(name, "its units meet constants that differ, of which new ones have none.")
    small.raise_as(ValueRangeError)
    fixed.raise_as(CompositionError)
