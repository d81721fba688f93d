"""Which form of a product is the fastest, by machine."""

from __future__ import annotations

from typing import NamedTuple

from nnopt_jax.ops.machine import row_of

ANY = 1 << 62
"""As many rows as there may be."""


class Thresholds(NamedTuple):
    """For one kind of machine, what is multiplied as integers, and what by lists.

    Args:
        backend: JAX's platform.
        since: the first version of JAX that it holds for.
        int8_weight: least number of entries of a weight of integers.
        int8_rows: most rows of codes that are multiplied with codes of the weight.
        split_rows: most rows of floats that are split into integers for a weight of integers.
        list_weight: least number of entries of a sparse weight.
        single: of lists of single weights, the longest that pays: a part of the inputs.
        blocks: of lists of blocks, likewise.
    """

    backend: str
    since: tuple[int, int]
    int8_weight: int
    int8_rows: int
    split_rows: int
    list_weight: int
    single: float
    blocks: float


TABLE = (
    Thresholds("cpu", (0, 12), 1 << 17, ANY, ANY, 1 << 15, 0.15, 0.5),
    Thresholds("cpu", (0, 0), 1 << 17, ANY, 64, 1 << 15, 0.15, 0.5),
)
"""The newest version first; from what `python benchmarks/products.py` prints.

Integers were measured on a machine with matrix instructions for int8 (AMX). What they are compared
with is the packed weight made float at each call, which costs more than the product itself below
some hundred rows.

Lists were measured with `--forms "laid out"` for 1, 8 and 32 rows. At 90 % zeros, where the longest
of 1,024 lists holds 13 % of the inputs, products are 0.8 to 1.3 times as fast as dense ones
(medians), and at 85 % most are slower; of a matrix of 4,096 x 4,096 they are 1.0 to 4.6 times as
fast at 90 %, and slower for one row at 85 %. Of blocks the limit is between 50 % and 75 %. One row
of a small matrix (512 x 512) is slower to 95 %, eight are not."""

OTHERS = Thresholds("", (0, 0), 0, ANY, 0, 0, 0.0, 0.0)
"""Of machines that nobody has measured."""


def thresholds(backend: str | None = None, version: tuple[int, ...] | None = None) -> Thresholds:
    """Return the thresholds of a machine.

    Args:
        backend: JAX's platform; None: the default one.
        version: of JAX; None: this one.
    """
    return row_of(TABLE, OTHERS, backend, version)


def use_int8(rows: int, inner: int, outer: int, limits: Thresholds | None = None) -> bool:
    """Whether codes of activations and of a weight are multiplied as such.

    Args:
        rows: of the activations, for each index that goes along.
        inner: entries that are summed over.
        outer: outputs of a row.
        limits: None: those of this machine.

    Example:
        >>> from nnopt_jax.arrays.products.dispatch import thresholds, use_int8
        >>> machine = thresholds("cpu", (0, 12, 0))
        >>> use_int8(32, 4096, 4096, machine), use_int8(32, 64, 64, machine)
        (True, False)
    """
    limits = limits or thresholds()
    return inner * outer >= limits.int8_weight and rows <= limits.int8_rows


def use_split_int8(rows: int, inner: int, outer: int, limits: Thresholds | None = None) -> bool:
    """Whether float activations are split into several int8, for a weight of integers.

    Args:
        rows: as for `use_int8`.
        inner: likewise.
        outer: likewise.
        limits: likewise.

    Example:
        >>> from nnopt_jax.arrays.products.dispatch import thresholds, use_split_int8
        >>> machine = thresholds("cpu", (0, 10, 2))
        >>> use_split_int8(8, 4096, 4096, machine), use_split_int8(256, 4096, 4096, machine)
        (True, False)
    """
    limits = limits or thresholds()
    return inner * outer >= limits.int8_weight and rows <= limits.split_rows


def prefer_lists(size: int, part: float, *, blocks: bool, limits: Thresholds | None = None) -> bool:
    """Whether products by lists are faster than those with the dense weight.

    Args:
        size: entries of the weight.
        part: of the inputs, how many the longest list holds.
        blocks: whether the lists are of blocks.
        limits: None: those of this machine.

    Example:
        >>> from nnopt_jax.arrays.products.dispatch import TABLE, prefer_lists
        >>> [prefer_lists(2**20, part, blocks=False, limits=TABLE[0]) for part in (0.1, 0.5)]
        [True, False]
    """
    limits = limits or thresholds()
    return size >= limits.list_weight and part <= (limits.blocks if blocks else limits.single)
