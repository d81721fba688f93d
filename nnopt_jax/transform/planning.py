"""The plan of a transform: its effect on each leaf, before any weight changes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from nnopt_jax.arrays.nodes import is_node, summary
from nnopt_jax.arrays.storage import find_masked, store
from nnopt_jax.columns import Tabular, aligned, brief_fields, counted
from nnopt_jax.transform.base import Transform, abstract_state, abstractly
from nnopt_jax.transform.inert import without_inert
from nnopt_jax.transform.validation import check_arrays, check_transforms
from nnopt_jax.tree.bit_counts import tree_bits
from nnopt_jax.tree.paths import flatten


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """A row of a plan: one leaf before and after the transform.

    Args:
        path: the path of the leaf.
        before: the shape and dtype.
        after: the storage form.
        bits_before: the current bits.
        bits_after: the greatest number of bits in storage form.
        bound: whether `bits_after` is only a bound, because the mask is not yet known.
        size: the number of parameters.
        note: a remark, such as assumed axes, or the reason why a weight is skipped.
    """

    path: str
    before: str
    after: str
    bits_before: int
    bits_after: int
    bound: bool
    size: int
    note: str = ""

    __repr__ = brief_fields

    @property
    def bytes(self) -> str:
        """Return the bytes before and after, as `128 -> 36`."""
        return _bytes(self.bits_before, self.bits_after, self.bound)


def _bytes(before: int, after: int, bound: bool) -> str:
    return f"{-(-before // 8):,} -> {'<= ' * bound}{-(-after // 8):,}"


@dataclasses.dataclass(frozen=True, repr=False)
class Plan(Tabular):
    """A printable, JSON-able table of what a transform does to each leaf.

    Args:
        name: the name of the transform.
        rows: a row for each leaf, including unchanged ones.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"bias": jnp.zeros(4), "kernel": jnp.zeros((8, 4))}
        >>> print(nnopt.plan(nnopt.quantization.uniform(8), params))
        quantization.uniform
        leaf    before           after                                                  bytes
        bias    float32[4]       unchanged                                           16 -> 16
        kernel  float32[8,4]     Quantized(codes int8[8,4], scale float32[1,1])     128 -> 36
        total   36 parameters                                             144 -> 52 (2.8x)
    """

    name: str
    rows: tuple[PlanRow, ...]

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        return f"{counted(len(self.rows), 'leaf', 'leaves')}, {self.name}"

    @property
    def bits_before(self) -> int:
        """The number of bits of all leaves before the transform."""
        return sum(row.bits_before for row in self.rows)

    @property
    def bits_after(self) -> int:
        """An upper bound on the number of bits of all leaves in storage form."""
        return sum(row.bits_after for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as dictionaries and lists."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Return the plan as a table with a row for each leaf."""
        size = sum(row.size for row in self.rows)
        bound = any(row.bound for row in self.rows)
        ratio = f"{self.bits_before / max(self.bits_after, 1):.1f}x"
        total = f"{_bytes(self.bits_before, self.bits_after, bound)} ({'>= ' * bound}{ratio})"
        cells = [("leaf", "before", "after", "bytes", "notes")]
        for row in self.rows:
            cells.append((row.path, row.before, row.after, row.bytes, row.note))
        cells.append(("total", f"{size:,} parameters", "", total, ""))
        if not any(row.note for row in self.rows):
            cells = [row[:-1] for row in cells]
        return "\n".join([self.name, *aligned(cells)])


def plan(tx: Transform, params: Any) -> Plan:
    """Return the effect of a transform on each leaf, without computing anything.

    The plan runs `init` and `pack` on shapes alone, so that every error of selection, shape and
    divisibility is raised here. Sizes are in memory; a file is smaller, because its streams are
    entropy-coded.

    Args:
        tx: the transform.
        params: the parameters, or `jax.ShapeDtypeStruct`s in their place.

    Returns:
        The plan. If a mask depends on data, its size is a bound, marked `<=`.

    Raises:
        CompositionError: `tx` is not a transform.
        NnoptError: `tx.init` raises an error.

    If necessary, a last column notes axes that are assumed because the transform is not bound to a
    model, weights that are skipped by default, and leaves that are skipped because groups or
    patterns do not fit them. Leaves that are not arrays have no row.

    Example:
        >>> import jax
        >>> import nnopt_jax as nnopt
        >>> shape = {"kernel": jax.ShapeDtypeStruct((1000, 100), "float32")}
        >>> nnopt.plan(nnopt.pruning.magnitude(0.9), shape).rows[0].after
        'Sparse(values float32[10000], support 1-bit[1000,100])'
    """
    check_transforms("plan", [tx])
    params = without_inert(params)
    check_arrays(tx.name, flatten(params, is_node))
    state = abstract_state(tx, params)
    encoded = jax.eval_shape(tx.encode, params, state)
    final = tx.capacities(params)
    masked = {p: find_masked(x) for p, x in flatten(encoded, is_node).items() if is_node(x)}
    # A mask that depends on data may keep all entries, so the size is that of the worst case.
    room = {
        path: final.get(path, math.prod(mask.shape))
        for path, mask in masked.items()
        if mask is not None and mask.capacity is None
    }
    packed = jax.eval_shape(lambda leaves: store(leaves, capacities=room), encoded)
    before, after = flatten(params, is_node), flatten(packed, is_node)
    notes = {path: "; ".join(texts) for path, texts in abstractly(tx.notes, params).items()}
    rows = tuple(
        PlanRow(
            path,
            summary(leaf),
            summary(after[path]) if is_node(after[path]) else "unchanged",
            tree_bits(leaf),
            tree_bits(after[path]),
            masked.get(path) is not None,
            math.prod(leaf.shape),
            notes.get(path, ""),
        )
        for path, leaf in before.items()
    )
    return Plan(tx.name, rows)
