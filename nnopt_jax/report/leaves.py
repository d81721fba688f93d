"""Rows of tables out of trees of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nnopt_jax.arrays.nodes import is_node, show, summary
from nnopt_jax.report.summary import LeafRow
from nnopt_jax.tree.bit_counts import tree_bits
from nnopt_jax.tree.paths import flatten

_BINS = 48


def leaf_rows(
    tree: Any,
    file_bytes: Mapping[str, int] | None = None,
    calls: Mapping[str, str] | None = None,
) -> tuple[LeafRow, ...]:
    """Measures every leaf of a tree.

    Args:
        tree: parameters, dense or packed.
        file_bytes: by path, what the leaf takes in its file.
        calls: by path, what `leaf_calls` returned.

    Returns:
        One row for each leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.report.leaves import leaf_rows
        >>> leaf_rows({"w": jnp.array([0.0, 1.0])})[0].zeros
        1
    """
    sizes, calls = file_bytes or {}, calls or {}
    rows = []
    for path, leaf in flatten(tree, is_node).items():
        values = np.asarray(show(leaf)).astype(np.float64).ravel()
        finite = values[(values != 0) & np.isfinite(values)]
        counts, edges = np.histogram(finite, _BINS)
        rows.append(
            LeafRow(
                path,
                summary(leaf),
                tuple(leaf.shape),
                sizes.get(path),
                tree_bits(leaf),
                int((values == 0).sum()),
                tuple(float(f"{edge:.6g}") for edge in edges),
                tuple(map(int, counts)),
                calls.get(path, ""),
            )
        )
    return tuple(rows)


def compare(left: Any, right: Any) -> list[tuple[str, str, str, float | None]]:
    """Says how two trees of parameters differ, leaf by leaf.

    Args:
        left: parameters, dense or packed.
        right: what they are compared with.

    Returns:
        For each path on either side: the path, the expression on the left, that on the right
        (empty where there is none), and the greatest absolute difference of the dense values
        (None where they cannot be compared).

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.report.leaves import compare
        >>> compare({"w": jnp.zeros(2)}, {"w": jnp.ones(2)})
        [('w', 'float32[2]', 'float32[2]', 1.0)]
    """
    ours, theirs = flatten(left, is_node), flatten(right, is_node)
    rows = []
    for path in {**ours, **theirs}:
        pair = [side.get(path) for side in (ours, theirs)]
        texts = ("" if leaf is None else summary(leaf) for leaf in pair)
        rows.append((path, *texts, _distance(*pair)))
    return rows


def _distance(left: Any, right: Any) -> float | None:
    if left is None or right is None or tuple(left.shape) != tuple(right.shape):
        return None
    a, b = (np.asarray(show(leaf)).astype(np.float64) for leaf in (left, right))
    return float(np.abs(a - b).max(initial=0.0))
