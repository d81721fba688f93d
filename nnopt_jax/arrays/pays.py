"""Where the lists of a sparse weight are faster than the dense weight."""

from __future__ import annotations

from typing import NamedTuple

from nnopt_jax.ops.machine import row_of


class Rule(NamedTuple):
    """For one kind of machine, which sparse weights are multiplied by their lists.

    Args:
        backend: JAX's platform.
        since: the first version of JAX that it holds for.
        weight: least number of entries of the weight.
        single: of lists of single weights, the longest that pays: a part of the inputs.
        blocks: of lists of blocks, likewise.
    """

    backend: str
    since: tuple[int, int]
    weight: int
    single: float
    blocks: float


TABLE = (
    Rule("cpu", (0, 12), 1 << 15, 0.15, 0.5),
    Rule("cpu", (0, 0), 1 << 15, 0.15, 0.5),
)
"""The newest version first; from what `python benchmarks/products.py --forms "laid out"` prints for
1, 8 and 32 rows. At 90 % zeros, where the longest of 1,024 lists holds 13 % of the inputs, products
are 0.8 to 1.3 times as fast as dense ones (medians), and at 85 % most are slower; of a matrix of
4,096 x 4,096 they are 1.0 to 4.6 times as fast at 90 %, and slower for one row at 85 %. Of blocks
the limit is between 50 % and 75 %. One row of a small matrix (512 x 512) is slower to 95 %, eight
are not."""

OTHERS = Rule("", (0, 0), 0, 0.0, 0.0)
"""Of machines that nobody has measured."""


def gathers_pay(size: int, part: float, *, blocks: bool, rule: Rule | None = None) -> bool:
    """Whether products by lists are faster than those with the dense weight.

    Args:
        size: entries of the weight.
        part: of the inputs, how many the longest list holds.
        blocks: whether the lists are of blocks.
        rule: None: that of this machine.

    Example:
        >>> from nnopt_jax.arrays.pays import TABLE, gathers_pay
        >>> [gathers_pay(2**20, part, blocks=False, rule=TABLE[0]) for part in (0.1, 0.5)]
        [True, False]
    """
    rule = rule or row_of(TABLE, OTHERS)
    return size >= rule.weight and part <= (rule.blocks if blocks else rule.single)
