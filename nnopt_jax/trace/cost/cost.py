"""The cost of a call: FLOPs, bytes and milliseconds for each leaf of the parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.nodes import is_node, summary
from nnopt_jax.trace.cost.count import ACTIVATIONS, ELEMENTWISE, Tally, count
from nnopt_jax.trace.cost.latency import milliseconds
from nnopt_jax.trace.cost.origin import FLOWING, LEAF, Origin
from nnopt_jax.trace.cost.table import Cost, CostRow
from nnopt_jax.trace.packed.leaf import Leaf
from nnopt_jax.trace.packed.walk import run
from nnopt_jax.trace.primitives import TABLE, Table
from nnopt_jax.trace.traced import Traced
from nnopt_jax.tree.bit_counts import tree_bits


def count_cost(given: Traced, *, latency: bool = False, table: Table = TABLE) -> Cost:
    """Count the cost of a call of a function for each leaf of its parameters.

    Args:
        given: the function, with shapes, arrays or packed leaves as its inputs.
        latency: whether to compile and time it; inputs that are shapes are then filled with zeros.
        table: the rules of the primitives.
    """

    def road(*values: Any) -> list[Any]:
        """Run the function, with packed leaves taking their packed path."""
        leaves = [
            Leaf(value, path) if is_node(value) else value
            for value, path in zip(values, given.paths, strict=True)
        ]
        return run(given.program, leaves, lambda *_: None, table)

    inputs = list(zip(given.paths, given.values, given.arguments, strict=True))
    origins = [
        Origin(LEAF, value.size, path) if which == 0 else FLOWING
        for path, value, which in inputs
        for _ in jax.tree.leaves(value)
    ]
    found, notes = count(jax.make_jaxpr(road)(*given.values), origins, table)
    rows = [
        _row(path, found.get(path, Tally()), summary(value), value.size, _bytes(tree_bits(value)))
        for path, value, which in inputs
        if which == 0
    ]
    rows += [_row(path, found[path]) for path in (ACTIVATIONS, ELEMENTWISE) if path in found]
    time = milliseconds(road, jax.tree.map(_zeros, given.values)) if latency else None
    return Cost(tuple(rows), time, notes)


def _row(path: str, tally: Tally, form: str = "", parameters: int = 0, stored: int = 0) -> CostRow:
    macs, flops, transcendentals, read, written = tally
    moved = _bytes(read), _bytes(written)
    return CostRow(path, form, parameters, stored, macs, flops, transcendentals, *moved)


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def _zeros(value: Any) -> Any:
    """Replace a shape with an array of zeros, also inside a packed leaf; keep other values."""
    if not isinstance(value, jax.ShapeDtypeStruct):
        return value
    return jnp.zeros(value.shape, value.dtype)
