"""Inspection of a file: the bytes of each leaf, without decoding arrays."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import jax

from nnopt_jax.arrays.nodes import is_node, summary
from nnopt_jax.artifact.container import Contents
from nnopt_jax.artifact.description import slot_tree
from nnopt_jax.artifact.file import DEFAULT_MAX_BYTES, contents
from nnopt_jax.columns import Tabular, aligned, brief_fields, counted
from nnopt_jax.tree import flatten, tree_bits


@dataclasses.dataclass(frozen=True)
class LeafSize:
    """The size of one leaf of a file.

    Args:
        path: the path of the leaf.
        expression: a one-line summary of the leaf.
        shape: the shape of the array that the leaf stands for.
        file_bytes: bytes in the file; arrays that are coded together share them in proportion.
        memory_bytes: bytes of the leaf's arrays in memory.
        bits_per_weight: bits in the file for each element of that array.
    """

    path: str
    expression: str
    shape: tuple[int, ...]
    file_bytes: float
    memory_bytes: int
    bits_per_weight: float

    __repr__ = brief_fields


@dataclasses.dataclass(frozen=True, repr=False)
class Inspection(Tabular):
    """The contents of a file, leaf by leaf.

    Args:
        rows: a `LeafSize` for each leaf.
        metadata: the JSON that was saved with the tree.
        file_bytes: the size of the file.
        overhead_bytes: bytes outside of all leaves: header, description and checksum.
        program_bytes: bytes of the program; 0 if there is none.
    """

    rows: tuple[LeafSize, ...]
    metadata: Any
    file_bytes: int
    overhead_bytes: float
    program_bytes: int = 0

    def summary(self) -> str:
        """Return the number of leaves and the size, for `repr`."""
        return f"{counted(len(self.rows), 'leaf', 'leaves')}, {self.file_bytes:,} bytes"

    def __str__(self) -> str:
        """Return a table of the bytes of each leaf, in the file and in memory."""
        cells = [("leaf", "expression", "in file", "in memory", "bits/weight")]
        for row in self.rows:
            sizes = f"{row.file_bytes:,.0f}", f"{row.memory_bytes:,}", f"{row.bits_per_weight:.3g}"
            cells.append((row.path, row.expression, *sizes))
        cells.append(("file", "", f"{self.file_bytes:,}", "", ""))
        return "\n".join(aligned(cells, numbers=3))


def inspect(path: str | os.PathLike[str], *, max_bytes: int = DEFAULT_MAX_BYTES) -> Inspection:
    """List the leaves of a file and the bytes that each takes.

    Args:
        path: a file that `save` wrote.
        max_bytes: as for `load`.

    Returns:
        A row for each leaf, and the bytes outside of leaves.

    Raises:
        ArtifactError: see `load`.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nnopt.save(f"{folder}/model.nnopt", {"w": jnp.zeros((300, 100))})
        ...     row = nnopt.inspect(f"{folder}/model.nnopt").rows[0]
        >>> row.path, row.expression, row.file_bytes, row.memory_bytes
        ('w', 'float32[300,100]', 8.0, 120000)
    """
    found = contents(path, max_bytes)
    taken = _bytes_by_array(found)
    slots = jax.tree.structure(found.tree, is_leaf=is_node).flatten_up_to(slot_tree(found.tree))
    rows = []
    for (name, leaf), inside in zip(flatten(found.tree, is_node).items(), slots, strict=True):
        size = sum(taken.get(slot.index, 0.0) for slot in jax.tree.leaves(inside))
        memory, bits = -(-tree_bits(leaf) // 8), 8 * size / max(math.prod(leaf.shape), 1)
        rows.append(LeafSize(name, summary(leaf), tuple(leaf.shape), size, memory, bits))
    total, program = os.path.getsize(path), len(found.program)
    rest = total - program - sum(row.file_bytes for row in rows)
    return Inspection(tuple(rows), found.metadata, total, rest, program)


def sizes(path: str | os.PathLike[str], *, max_bytes: int = DEFAULT_MAX_BYTES) -> dict[str, int]:
    """Return the bytes of each leaf in a file, by path.

    Args:
        path: the file.
        max_bytes: see `inspect`, which raises the same errors.
    """
    rows = inspect(path, max_bytes=max_bytes).rows
    return {row.path: round(row.file_bytes) for row in rows}


def _bytes_by_array(found: Contents) -> dict[int, float]:
    """Return the bytes of each array in the file; arrays of a stream share them by size."""
    taken: dict[int, float] = {}
    for stream, part in zip(found.plan.coded, found.coded, strict=True):
        taken |= {index: len(part) / len(stream.covers) for index in stream.covers}
    for pool, planes in zip(found.plan.pools, found.planes, strict=True):
        each = sum(map(len, planes)) / sum(slot.size for slot in pool)
        taken |= {slot.index: each * slot.size for slot in pool}
    return taken
