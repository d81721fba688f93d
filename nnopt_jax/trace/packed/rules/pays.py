"""Where products of integers are faster than those of floats."""

from __future__ import annotations

from typing import NamedTuple

from nnopt_jax.ops.machine import row_of

ANY = 1 << 62
"""As many rows as there may be."""


class Rule(NamedTuple):
    """For one kind of machine, what is multiplied as integers.

    Args:
        backend: JAX's platform.
        since: the first version of JAX that it holds for.
        weight: least number of entries of the weight.
        rows: most rows of which codes alone are multiplied, with codes of the weight.
        planes: most rows that are multiplied plane by plane with a weight of integers.
    """

    backend: str
    since: tuple[int, int]
    weight: int
    rows: int
    planes: int


TABLE = (
    Rule("cpu", (0, 12), 1 << 17, ANY, ANY),
    Rule("cpu", (0, 0), 1 << 17, ANY, 64),
)
"""The newest version first; from what `python benchmarks/products.py` prints on a machine with
matrix instructions for int8 (AMX). What integers are compared with is the packed weight
made float at each call, which costs more than the product itself below some hundred rows."""

OTHERS = Rule("", (0, 0), 0, ANY, 0)
"""Of machines that nobody has measured."""


def rule_of(backend: str | None = None, version: tuple[int, ...] | None = None) -> Rule:
    """The rule of a machine.

    Args:
        backend: JAX's platform; None: the default one.
        version: of JAX; None: this one.
    """
    return row_of(TABLE, OTHERS, backend, version)


def integers_pay(rows: int, inner: int, outer: int, rule: Rule | None = None) -> bool:
    """Whether codes of activations and of a weight are multiplied as such.

    Args:
        rows: of the activations, for each index that goes along.
        inner: entries that are summed over.
        outer: outputs of a row.
        rule: None: that of this machine.

    Example:
        >>> from nnopt_jax.trace.packed.rules.pays import integers_pay, rule_of
        >>> machine = rule_of("cpu", (0, 12, 0))
        >>> integers_pay(32, 4096, 4096, machine), integers_pay(32, 64, 64, machine)
        (True, False)
    """
    rule = rule or rule_of()
    return inner * outer >= rule.weight and rows <= rule.rows


def planes_pay(rows: int, inner: int, outer: int, rule: Rule | None = None) -> bool:
    """Whether float activations are multiplied with a weight of integers plane by plane.

    Args:
        rows: as for `integers_pay`.
        inner: likewise.
        outer: likewise.
        rule: likewise.

    Example:
        >>> from nnopt_jax.trace.packed.rules.pays import planes_pay, rule_of
        >>> machine = rule_of("cpu", (0, 10, 2))
        >>> planes_pay(8, 4096, 4096, machine), planes_pay(256, 4096, 4096, machine)
        (True, False)
    """
    rule = rule or rule_of()
    return inner * outer >= rule.weight and rows <= rule.planes
