"""FLOPs, bytes and milliseconds of a function, for each leaf of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.base import is_node, summary
from nnopt_jax.trace.cost.count import ACTIVATIONS, ELEMENTWISE, Tally, count
from nnopt_jax.trace.cost.latency import milliseconds
from nnopt_jax.trace.cost.origin import FLOWING, LEAF, Origin
from nnopt_jax.trace.cost.table import Cost, CostRow
from nnopt_jax.trace.packed.leaf import Leaf
from nnopt_jax.trace.packed.walk import run
from nnopt_jax.trace.primitives import TABLE, Table
from nnopt_jax.trace.traced import Traced
from nnopt_jax.tree.bits import tree_bits


def count_cost(given: Traced, *, latency: bool = False, table: Table = TABLE) -> Cost:
    """Count what a call of a function costs, for each leaf of its parameters.

    Args:
        given: the function, with shapes, arrays or packed leaves as its inputs.
        latency: whether to compile and time it; inputs that are shapes are then filled with zeros.
        table: where primitives are described.
    """
    road, inputs = _road(given, table)
    program = jax.make_jaxpr(road)(*inputs)
    origins = [
        origin
        for value, origin in zip(given.values, _origins(given), strict=True)
        for _ in jax.tree.leaves(value)
    ]
    found = count(program, origins, table)
    rows = [
        _row(path, value, found.rows.get(path, Tally()))
        for path, value, which in zip(given.paths, given.values, given.arguments, strict=True)
        if which == 0
    ]
    rows += [
        _row(path, None, found.rows[path])
        for path in (ACTIVATIONS, ELEMENTWISE) if path in found.rows
    ]  # fmt: skip
    time = milliseconds(road, jax.tree.map(_zeros, inputs)) if latency else None
    return Cost(tuple(rows), time, found.notes)


def _road(given: Traced, table: Table) -> tuple[Callable[..., Any], list[Any]]:
    """What runs, packed leaves on their packed road, and its inputs."""

    def road(*values: Any) -> list[Any]:
        leaves = [
            Leaf(value, path) if is_node(value) else value
            for value, path in zip(values, given.paths, strict=True)
        ]
        return run(given.program, leaves, lambda *_: None, table)

    return road, list(given.values)


def _origins(given: Traced) -> list[Origin]:
    return [
        Origin(LEAF, value.size, path) if which == 0 else FLOWING
        for value, path, which in zip(given.values, given.paths, given.arguments, strict=True)
    ]


def _row(path: str, value: Any, tally: Tally) -> CostRow:
    macs, flops, transcendentals, read, written = tally
    return CostRow(
        path,
        "" if value is None else summary(value),
        0 if value is None else value.size,
        _bytes(tree_bits(value)),
        macs, flops, transcendentals, _bytes(read), _bytes(written),
    )  # fmt: skip


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def _zeros(value: Any) -> Any:
    """An array in place of a shape, also inside a packed leaf; arrays as they are."""
    if not isinstance(value, jax.ShapeDtypeStruct):
        return value
    return jnp.zeros(value.shape, value.dtype)
