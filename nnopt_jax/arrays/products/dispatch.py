"""Dispatch heuristics: the fastest form of a product on each kind of machine."""

from __future__ import annotations

from typing import NamedTuple

import jax

ANY = 1 << 62
"""A number of rows that never limits."""


class Thresholds(NamedTuple):
    """Thresholds of one kind of machine for products of integers and of sparse (ELL) weights.

    Args:
        backend: JAX's platform.
        since: the first version of JAX for which the thresholds were measured.
        int8_weight: the least number of entries of a weight for an integer product.
        int8_rows: the most rows of integer activations for an integer product.
        split_rows: the most rows of float activations for a split-int8 product.
        ell_weight: the least number of entries of a weight for ELL.
        single: the longest row for which ELL is faster, as a fraction of the inputs.
        blocks: the longest row for which block ELL is faster, as a fraction of the inputs.
    """

    backend: str
    since: tuple[int, int]
    int8_weight: int
    int8_rows: int
    split_rows: int
    ell_weight: int
    single: float
    blocks: float


TABLE = (
    Thresholds("cpu", (0, 12), 1 << 17, ANY, ANY, 1 << 15, 0.15, 0.5),
    Thresholds("cpu", (0, 0), 1 << 17, ANY, 64, 1 << 15, 0.15, 0.5),
)
"""The thresholds of measured machines, the newest version first, from `benchmarks/products.py`.

Integers were measured on a machine with matrix instructions for int8 (AMX). The alternative is to
dequantize the packed weight in each call, which costs more than the product itself below some
hundred rows.

ELL was measured with `--forms prepacked` for 1, 8 and 32 rows. At 90 % zeros, where the longest of
1,024 rows of ELL holds 13 % of the inputs, products are 0.8 to 1.3 times as fast as dense ones
(medians), and at 85 % most are slower; for a matrix of 4,096 x 4,096 they are 1.0 to 4.6 times as
fast at 90 %, and slower for one row at 85 %. For block ELL the limit is between 50 % and 75 %. For
a small matrix (512 x 512), products of one row are slower up to 95 %, those of eight rows are
not.
"""

OTHERS = Thresholds("", (0, 0), 0, ANY, 0, 0, 0.0, 0.0)
"""The thresholds of other, unmeasured machines: integer products, no split and no ELL."""


def thresholds(backend: str | None = None, version: tuple[int, ...] | None = None) -> Thresholds:
    """Return the thresholds of a machine.

    Args:
        backend: JAX's platform; None for the default one.
        version: the version of JAX; None for the installed one.
    """
    backend, version = backend or jax.default_backend(), version or jax.__version_info__
    known = (row for row in TABLE if row.backend == backend and version >= row.since)
    return next(known, OTHERS)


def use_int8(
    rows: int, inner: int, outer: int, *, split: bool = False, limits: Thresholds | None = None
) -> bool:
    """Return whether to multiply an integer weight as integers.

    Args:
        rows: the number of rows of activations, for each batch index.
        inner: the number of contracted entries.
        outer: the number of outputs for each row.
        split: whether the activations are floats to be split into several int8 arrays, rather than
            codes.
        limits: the limits of the machine; None for this one.

    Example:
        >>> from nnopt_jax.arrays.products.dispatch import thresholds, use_int8
        >>> machine = thresholds("cpu", (0, 10, 2))
        >>> use_int8(256, 4096, 4096, limits=machine), use_int8(32, 64, 64, limits=machine)
        (True, False)
        >>> use_int8(256, 4096, 4096, split=True, limits=machine)
        False
    """
    limits = limits or thresholds()
    most = limits.split_rows if split else limits.int8_rows
    return inner * outer >= limits.int8_weight and rows <= most


def prefer_ell(size: int, part: float, *, blocks: bool, limits: Thresholds | None = None) -> bool:
    """Return whether ELL is faster than the dense weight.

    Args:
        size: the number of entries of the weight.
        part: the fraction of the inputs that the longest row of ELL holds.
        blocks: whether the weight is block ELL.
        limits: the limits of the machine; None for this one.

    Example:
        >>> from nnopt_jax.arrays.products.dispatch import TABLE, prefer_ell
        >>> [prefer_ell(2**20, part, blocks=False, limits=TABLE[0]) for part in (0.1, 0.5)]
        [True, False]
    """
    limits = limits or thresholds()
    return size >= limits.ell_weight and part <= (limits.blocks if blocks else limits.single)
