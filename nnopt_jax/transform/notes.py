"""Notes in the rows of a plan: assumed axes, and skipped leaves."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.transform.binding import Binding
from nnopt_jax.tree.paths import flatten

Notes = dict[str, tuple[str, ...]]
"""The notes on each leaf, by path."""

ASSUMED = "axes assumed"


def leaf_notes(
    params: Any,
    misfits: Mapping[str, Iterable[str]],
    axes: Container[str],
    binding: Binding,
    *,
    by_default: bool,
) -> Notes:
    """Return the notes of a plan by leaf: assumed axes, and reasons why a leaf is skipped.

    Args:
        params: the parameters, or their shapes.
        misfits: for each selected leaf, by path, the reasons why the method does not fit it; empty
            if it does.
        axes: the paths of the leaves on whose axes the method depends.
        binding: the model that the method is bound to.
        by_default: whether the leaves were selected by the default rule.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transform.binding import UNBOUND
        >>> params = {"kernel": jnp.ones((4, 4))}
        >>> leaf_notes(params, {"kernel": ()}, ["kernel"], UNBOUND, by_default=True)
        {'kernel': ('axes assumed',)}
    """
    notes: Notes = {}
    if by_default and binding.weights is not None:
        leaves = flatten(params, is_node)
        for path, why in binding.left_out.items():
            if path in leaves and path not in misfits:
                notes[path] = (f"left out: {why}",)
    for path, texts in misfits.items():
        if skipped := tuple(f"skipped: {text}" for text in texts):
            notes[path] = skipped
        elif binding.is_assumed(path) and path in axes:
            notes[path] = (ASSUMED,)
    return notes


def joined(*several: Mapping[str, tuple[str, ...]]) -> Notes:
    """Merge the notes of several transforms, without duplicates.

    Example:
        >>> joined({"a": ("axes assumed",)}, {"a": ("axes assumed",), "b": ("left out: it",)})
        {'a': ('axes assumed',), 'b': ('left out: it',)}
    """
    found: Notes = {}
    for notes in several:
        for path, texts in notes.items():
            found[path] = tuple(dict.fromkeys((*found.get(path, ()), *texts)))
    return found
