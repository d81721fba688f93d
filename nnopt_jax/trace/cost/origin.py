"""The origin of a value of a program, which decides the leaf that its work is counted for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

CONSTANT, LEAF, CHOSEN, ACTIVATION = range(4)
"""Kinds of values: made of constants alone; made of a leaf; entries of a leaf that an activation
chose; all others. A value made of several has the largest of their kinds.
"""


class Origin(NamedTuple):
    """The origin of a value; a value made of several has the largest of their origins.

    Args:
        kind: `CONSTANT`, `LEAF`, `CHOSEN` or `ACTIVATION`.
        size: the number of elements of the leaf; of two leaves the larger one counts.
        path: the path of the leaf; empty without one.

    Example:
        >>> from nnopt_jax.trace.cost.origin import LEAF, Origin
        >>> max(Origin(LEAF, 64, "kernel"), Origin(LEAF, 8, "scale")).path
        'kernel'
    """

    kind: int
    size: int = 0
    path: str = ""

    @property
    def owned(self) -> bool:
        """Whether the value comes from a leaf."""
        return self.kind in (LEAF, CHOSEN)

    @property
    def moves(self) -> bool:
        """Whether the value depends on the inputs, so that it is moved at every call."""
        return self.kind in (CHOSEN, ACTIVATION)


NUMBER, FLOWING = Origin(CONSTANT), Origin(ACTIVATION)


def outcome(chooses: Sequence[int], given: Sequence[Origin], operands: Sequence[int]) -> Origin:
    """Return the origin of an outcome of a step.

    Args:
        chooses: the operands that only choose entries of the others.
        given: the origins of all operands.
        operands: the operands that the outcome depends on.
    """
    data = max((given[i] for i in operands if i not in chooses), default=NUMBER)
    chosen = max((given[i] for i in operands if i in chooses), default=NUMBER)
    if not chosen.moves:
        return max(data, chosen)
    return Origin(CHOSEN, data.size, data.path) if data.owned else FLOWING


def contracted(left: Origin, right: Origin) -> str:
    """Return the path of the leaf that a product is counted for; empty for one of activations.

    A whole leaf goes before chosen entries of a leaf, and the larger of two before the smaller.
    """
    owned = [at for at in (left, right) if at.owned]
    if not owned or left.kind == right.kind == CHOSEN:
        return ""
    return max(owned, key=lambda at: (at.kind == LEAF, at.size)).path
