"""Reports on the leaves of packed parameters: sizes, values, differences, and use in a call."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from nnopt_jax.arrays.nodes import is_node, materialize, summary
from nnopt_jax.columns import brief_fields
from nnopt_jax.trace import PackedReport
from nnopt_jax.tree.bit_counts import tree_bits
from nnopt_jax.tree.paths import flatten

__all__ = ["LeafRow", "call_note", "compare", "leaf_calls", "leaf_rows"]

PACKED, UNREAD = "packed", "not read"
_BINS = 48


@dataclasses.dataclass(frozen=True)
class LeafRow:
    """One leaf of the packed model.

    Args:
        path: the path of the leaf.
        expression: the storage form, on one line.
        shape: the logical shape.
        file_bytes: the bytes of its streams in the file; None if they are not known separately.
        memory_bits: the bits of its arrays in memory.
        zeros: the number of its values that are zero.
        edges: the edges of the bins of the histogram, one more than bins.
        counts: the number of nonzero values in each bin.
        call: its use in a call, from `leaf_calls`; empty for arrays.
    """

    path: str
    expression: str
    shape: tuple[int, ...]
    file_bytes: int | None
    memory_bits: int
    zeros: int = 0
    edges: tuple[float, ...] = dataclasses.field(default=(), repr=False)
    counts: tuple[int, ...] = dataclasses.field(default=(), repr=False)
    call: str = ""

    __repr__ = brief_fields

    @property
    def size(self) -> int:
        """Return the number of parameters."""
        return math.prod(self.shape)


def leaf_rows(
    tree: Any,
    file_bytes: Mapping[str, int] | None = None,
    calls: Mapping[str, str] | None = None,
) -> tuple[LeafRow, ...]:
    """Measure every leaf of a tree.

    Args:
        tree: parameters, dense or packed.
        file_bytes: the bytes of each leaf in the file, by path.
        calls: the result of `leaf_calls`.

    Returns:
        A row for each leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.report.leaf_report import leaf_rows
        >>> leaf_rows({"w": jnp.array([0.0, 1.0])})[0].zeros
        1
    """
    sizes, calls = file_bytes or {}, calls or {}
    rows = []
    for path, leaf in flatten(tree, is_node).items():
        values = np.asarray(materialize(leaf)).astype(np.float64).ravel()
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
    """Compare two trees of parameters, leaf by leaf.

    Args:
        left: parameters, dense or packed.
        right: the other parameters, dense or packed.

    Returns:
        For each path of either tree: the path, the form on the left, the form on the right (empty
        if the leaf is missing), and the greatest absolute difference of the dense values (None if
        they cannot be compared).

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.report.leaf_report import compare
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
    a, b = (np.asarray(materialize(leaf)).astype(np.float64) for leaf in (left, right))
    return float(np.abs(a - b).max(initial=0.0))


def leaf_calls(tree: Any, report: PackedReport) -> dict[str, str]:
    """Return how a call used each packed leaf: packed or materialized.

    Args:
        tree: the parameters.
        report: the report of a function that takes these parameters first.

    Returns:
        The use by path: "packed"; or the node that is materialized by a use, with the reason; or
        "not read". Arrays are omitted.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> from nnopt_jax.report import leaf_calls
        >>> tx, params = nnopt.pruning.magnitude(0.5), {"w": jnp.eye(4)}
        >>> packed = tx.pack(params, tx.init(params))
        >>> run = nnopt.on_packed(lambda params: jnp.fft.fft(params["w"]))
        >>> leaf_calls(packed, run.report(packed))
        {'w': 'Sparse: no rule for fft'}
    """
    leaves = {path: leaf for path, leaf in flatten(tree, is_node).items() if is_node(leaf)}
    found = dict.fromkeys(leaves, UNREAD)
    for use in report.uses:
        # A concatenation of leaves has the names of all of them.
        for path in (use.path,) if use.path in leaves else use.path.split(" and "):
            if found.get(path) in (UNREAD, PACKED):
                found[path] = f"{use.form}: {use.reason}" if use.reason else PACKED
    return found


def call_note(calls: Mapping[str, str]) -> str:
    """Return a sentence on how many leaves a call used packed or materialized.

    Args:
        calls: the result of `leaf_calls`.

    Example:
        >>> from nnopt_jax.report import call_note
        >>> call_note(
        ...     {"a": "packed", "b": "Sparse: no rule for sin", "c": "Sparse: no rule for sin"}
        ... )
        '2 of 3 packed leaves are materialized inside the call: 2 Sparse (no rule for sin).'
        >>> call_note({"a": "packed"}), call_note({})
        ('No packed leaf is materialized inside the call.', 'No leaf is packed.')
    """
    if not calls:
        return "No leaf is packed."
    dense = Counter(text for text in calls.values() if text not in (PACKED, UNREAD))
    if not dense:
        return "No packed leaf is materialized inside the call."
    why = []
    for text, count in dense.most_common():
        form, _, reason = text.partition(": ")
        why.append(f"{count} {form} ({reason})")
    made = "is" if dense.total() == 1 else "are"
    return (
        f"{dense.total()} of {len(calls)} packed leaves {made} materialized inside the call: "
        f"{', '.join(why)}."
    )
