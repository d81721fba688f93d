"""Wider networks with the same function: new units have zero or split outgoing weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.nodes import is_node, materialize, summary
from nnopt_jax.errors import Problems, SelectionError, ShapeError, nearest
from nnopt_jax.settings import Settings
from nnopt_jax.transfer.structure.place import gather_axis
from nnopt_jax.transform.validation import check_key, check_values
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.typing import Array, Key, Params

_NAME = "transfer.widen"


def widen(
    params: Params,
    produced: Mapping[str, int],
    consumed: Mapping[str, int],
    width: int,
    *,
    key: Key,
    outgoing: Literal["zero", "split"] = "zero",
    incoming: Literal["copy", "random"] = "copy",
    noise: float | None = None,
) -> Params:
    r"""Add hidden units without changing the function of the network.

    A new unit is a copy of a randomly drawn unit, and all units are copied equally often. With
    `outgoing="zero"`, its outgoing weights are zero, so that it adds exactly zero, and outputs
    differ at most by the order of longer sums in the backend. With `"split"`, a unit and its copies
    share its outgoing weights:

    $$ W'_{\text{out}}[j] = W_{\text{out}}[\pi(j)] \,/\, |\{k : \pi(k) = \pi(j)\}| $$

    The function then stays the same up to rounding. With either setting, it changes if the network
    computes statistics over the units, as layer normalization does.

    Args:
        params: arrays or packed parameters; the named leaves become arrays.
        produced: the leaves that produce the units, by path, with the axis of the units: the
            kernel and the bias before them, scales and statistics of a batch normalization.
        consumed: the leaves that consume the units, by path, with the axis.
        width: the new number of units.
        key: the key of the copies and the noise.
        outgoing: the outgoing weights of new units: zero, or split.
        incoming: `"copy"`, or `"random"` for kernels (leaves of two or more axes) of normal numbers
            with the mean and standard deviation of the leaf; only with zero outgoing weights.
        noise: the noise added to copied kernels, times their standard deviation, so that copies
            diverge in training. By default 0.1 with zero outgoing weights, which hide it; 0 with
            split ones, which do not (so that copies always get equal gradients).

    Returns:
        Parameters with `width` units, the old ones first. An axis that grows is no longer split
        over a mesh with Explicit axes.

    Raises:
        SelectionError: a path is not a leaf; all are named.
        ShapeError: an axis does not exist, or sizes differ; all are named.
        ValueRangeError: the width is not above the size, or a setting is wrong.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"fc1": jnp.array([[1.0, 2.0]]), "fc2": jnp.array([[5.0], [6.0]])}
        >>> wide = nnopt.transfer.widen(params, {"fc1": 1}, {"fc2": 0}, 3, key=jax.random.key(0))
        >>> wide["fc1"].shape, wide["fc2"].ravel()
        ((1, 3), Array([5., 6., 0.], dtype=float32))

    References:
        Chen et al. 2016, Net2Net, arXiv:1511.05641, section 2.2.
        Evci et al. 2022, GradMax, arXiv:2201.05125, section 3 (zero weights on one side).
    """
    settings = Settings(_NAME)
    settings.integer("width", width, 1)
    settings.choice("outgoing", outgoing, ("zero", "split"))
    settings.choice("incoming", incoming, ("copy", "random"))
    settings.number("noise", noise, 0, none=True)
    if outgoing == "split" and incoming == "random":
        text = "changes what is computed where outgoing weights are split; give outgoing='zero'."
        settings.wrong("incoming", incoming, text)
    settings.done()
    check_key(_NAME, key)
    leaves = flatten(params, is_node)
    check_values(_NAME, {path: leaves[path] for path in leaves if path in {*produced, *consumed}})
    units = _units(leaves, produced, consumed)
    if width <= units:
        settings.wrong("width", width, f"is not above the {units} units there are.")
    settings.done()
    for path in sorted(consumed) if outgoing == "split" else ():
        if not jnp.issubdtype(leaves[path].dtype, jnp.floating):
            text = f"divides weights, and {path} is {summary(leaves[path])}; give outgoing='zero'."
            settings.wrong("outgoing", outgoing, text)
    settings.done()
    noise = (0.1 if outgoing == "zero" else 0.0) if noise is None else noise
    draw, *keys = jax.random.split(key, 1 + len(produced))
    copied = units_to_copy(draw, units, width)
    named = {path: materialize(leaves[path]) for path in leaves if path in {*produced, *consumed}}
    for (path, axis), own in zip(sorted(produced.items()), keys, strict=True):
        noisy = noise if named[path].ndim > 1 else None
        named[path] = with_copies(
            own, gather_axis(named[path], axis), copied, axis, incoming, noisy
        )
    for path, axis in consumed.items():
        named[path] = with_outgoing(gather_axis(named[path], axis), copied, axis, outgoing)
    return unflatten(params, leaves | named, is_node)


def units_to_copy(key: Key, units: int, width: int) -> Array:
    """Return the index of the unit that each new unit copies; all are copied equally often.

    Example:
        >>> units_to_copy(jax.random.key(0), 1, 3)
        Array([0, 0], dtype=int32)
    """
    return jnp.resize(jax.random.permutation(key, units), (width - units,))


def with_copies(
    key: Key, leaf: Array, copied: Array, axis: int, incoming: str, noise: float | None
) -> Array:
    """Append new units to a leaf that produces units.

    Args:
        key: the key of the noise.
        leaf: a float leaf; any other leaf is only copied.
        copied: the unit that each new one copies.
        axis: the axis of the units.
        incoming: `"copy"`, or `"random"` for random numbers like the leaf.
        noise: the noise added to copies, times the standard deviation of the leaf; None for leaves
            of one axis, which are only copied.

    Example:
        >>> with_copies(jax.random.key(0), jnp.ones(2), jnp.array([0]), 0, "copy", None)
        Array([1., 1., 1.], dtype=float32)
    """
    added = jnp.take(leaf, copied, axis)
    if noise is not None and jnp.issubdtype(leaf.dtype, jnp.floating):
        keep, wide = incoming == "copy", leaf.astype(jnp.float32)
        center = added.astype(jnp.float32) if keep else wide.mean()
        drawn = jax.random.normal(key, added.shape, jnp.float32)
        added = (center + (noise if keep else 1.0) * wide.std() * drawn).astype(leaf.dtype)
    return jnp.concatenate([leaf, added], axis)


def with_outgoing(leaf: Array, copied: Array, axis: int, outgoing: str) -> Array:
    """Append weights of new units to a leaf that consumes units.

    Args:
        leaf: weights.
        copied: the unit that each new one copies.
        axis: the axis of the units.
        outgoing: `"zero"`, or `"split"` for equal parts of a unit and its copies.

    Example:
        >>> with_outgoing(jnp.array([3.0, 4.0]), jnp.array([1]), 0, "split")
        Array([3., 2., 2.], dtype=float32)
    """
    added = jnp.take(leaf, copied, axis)
    if outgoing == "zero":
        return jnp.concatenate([leaf, jnp.zeros_like(added)], axis)
    copies = 1 + jnp.bincount(copied, length=leaf.shape[axis])
    counts = jnp.concatenate([copies, copies[copied]]).astype(jnp.float32)
    all_units = jnp.moveaxis(jnp.concatenate([leaf, added], axis), axis, -1).astype(jnp.float32)
    counts = counts.reshape((1,) * (all_units.ndim - 1) + (-1,))
    return jnp.moveaxis(all_units / counts, -1, axis).astype(leaf.dtype)


def _units(
    leaves: Mapping[str, Any], produced: Mapping[str, int], consumed: Mapping[str, int]
) -> int:
    """Return the number of units; raise if leaves disagree about it."""
    lost, misfit = Problems(_NAME), Problems(_NAME)
    sizes: dict[int, list[str]] = {}
    for role, named in (("produced", produced), ("consumed", consumed)):
        if not named:
            lost.add("", f"{role} names no leaf; nothing would be preserved.")
        for path, axis in named.items():
            if path not in leaves:
                lost.add("", f"{role}: {path!r} is not a leaf.{nearest(path, leaves)}")
                continue
            leaf = leaves[path]
            if not -leaf.ndim <= axis < leaf.ndim:
                misfit.add(path, f"is {summary(leaf)} and has no axis {axis}")
                continue
            text = f"{path} has {leaf.shape[axis]} along axis {axis}"
            sizes.setdefault(leaf.shape[axis], []).append(text)
    lost.raise_as(SelectionError)
    if len(sizes) > 1:
        said = "; ".join(text for texts in sizes.values() for text in texts)
        misfit.add("", f"leaves disagree on the units: {said}")
    misfit.raise_as(ShapeError)
    return next(iter(sizes))
