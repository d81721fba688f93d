"""What becomes of packed leaves in a call, in a few words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.trace import PackedReport
from nnopt_jax.tree.paths import flatten

PACKED, UNREAD = "packed", "not read"


def leaf_calls(tree: Any, report: PackedReport) -> dict[str, str]:
    """Says of each packed leaf how a call uses it.

    Args:
        tree: the parameters.
        report: of a function whose first argument they are.

    Returns:
        By path: "packed"; the node that is made dense and why, where one of its uses does so; "not
        read" where nothing does. Arrays are not among them.

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
        # Leaves that were put side by side go by the names of all.
        for path in (use.path,) if use.path in leaves else use.path.split(" and "):
            if found.get(path) in (UNREAD, PACKED):
                found[path] = f"{use.form}: {use.reason}" if use.reason else PACKED
    return found


def call_note(calls: Mapping[str, str]) -> str:
    """One sentence on all packed leaves.

    Args:
        calls: what `leaf_calls` returned.

    Example:
        >>> from nnopt_jax.report import call_note
        >>> call_note(
        ...     {"a": "packed", "b": "Sparse: no rule for sin", "c": "Sparse: no rule for sin"}
        ... )
        '2 of 3 packed leaves are made dense inside the call: 2 Sparse (no rule for sin).'
        >>> call_note({"a": "packed"}), call_note({})
        ('No packed leaf is made dense inside the call.', 'No leaf is packed.')
    """
    if not calls:
        return "No leaf is packed."
    dense = Counter(told for told in calls.values() if told not in (PACKED, UNREAD))
    if not dense:
        return "No packed leaf is made dense inside the call."
    why = []
    for told, count in dense.most_common():
        form, _, reason = told.partition(": ")
        why.append(f"{count} {form} ({reason})")
    made = "is" if dense.total() == 1 else "are"
    return (
        f"{dense.total()} of {len(calls)} packed leaves {made} made dense inside the call: "
        f"{', '.join(why)}."
    )
