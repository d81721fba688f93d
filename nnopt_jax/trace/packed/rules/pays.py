"""Where integer products are faster than float ones."""

from __future__ import annotations

from typing import NamedTuple

import jax


class Rule(NamedTuple):
    """For one kind of machine, the shapes for which products of int8 are the faster ones.

    Args:
        backend: JAX's platform.
        since: the first version of JAX that it holds for.
        laid_out: whether what is summed over lies last in the weight.
        weight: least number of entries of the weight.
        rows: least and greatest number of rows.
        any_weight_rows: from so many rows on the weight may be of any size.
    """

    backend: str
    since: tuple[int, int]
    laid_out: bool
    weight: int
    rows: tuple[int, int]
    any_weight_rows: int


ANY = 1 << 62

# Measured by `python benchmarks/products.py`; the newest version first.
TABLE = (
    Rule("cpu", (0, 12), True, 1 << 20, (1, ANY), 32),
    Rule("cpu", (0, 12), False, 1 << 20, (2, ANY), 128),
    Rule("cpu", (0, 0), True, 1 << 20, (1, 64), ANY),
    Rule("cpu", (0, 0), False, 1 << 20, (ANY, ANY), ANY),
)
"""Machines that are not in it (none of them has been measured) multiply integers."""


def integers_pay(
    rows: int,
    inner: int,
    outer: int,
    *,
    laid_out: bool,
    backend: str | None = None,
    version: tuple[int, ...] | None = None,
) -> bool:
    """Whether a product of int8 is faster than one of float32.

    Args:
        rows: of the activations, for each index that goes along.
        inner: entries that are summed over.
        outer: outputs of a row.
        laid_out: whether what is summed over lies last in the weight.
        backend: JAX's platform; None: the default one.
        version: of JAX; None: this one.

    Example:
        >>> from nnopt_jax.trace.packed.rules.pays import integers_pay
        >>> machine = {"laid_out": True, "backend": "cpu", "version": (0, 12, 0)}
        >>> integers_pay(32, 4096, 4096, **machine), integers_pay(8, 384, 384, **machine)
        (True, False)
    """
    backend = backend or jax.default_backend()
    version = version or jax.__version_info__
    for rule in TABLE:
        if (rule.backend, rule.laid_out) == (backend, laid_out) and version >= rule.since:
            enough = inner * outer >= rule.weight and rule.rows[0] <= rows <= rule.rows[1]
            return enough or rows >= rule.any_weight_rows
    return True
