"""Where a value of a program comes from: which leaf work on it is done for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

CONSTANT, LEAF, CHOSEN, ACTIVATION = range(4)
"""Of numbers of the program alone; of a leaf; entries of a leaf that an activation chose; all
else. What is made of several values is what the last of them in this order is."""


class Origin(NamedTuple):
    """Where a value comes from. The larger of two is where what is made of both comes from.

    Args:
        kind: `CONSTANT`, `LEAF`, `CHOSEN` or `ACTIVATION`.
        size: elements of the leaf: of two leaves the larger one counts.
        path: of the leaf; empty where there is none.

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
        """Whether there is a leaf it comes from."""
        return self.kind in (LEAF, CHOSEN)

    @property
    def moves(self) -> bool:
        """Whether it is other with other inputs, so that it travels at every call."""
        return self.kind in (CHOSEN, ACTIVATION)


NUMBER, FLOWING = Origin(CONSTANT), Origin(ACTIVATION)


def outcome(chooses: Sequence[int], given: Sequence[Origin], operands: Sequence[int]) -> Origin:
    """Return where an outcome of a step comes from.

    Args:
        chooses: operands that only say which entries of the others are taken.
        given: where all operands come from.
        operands: those that the outcome depends on.
    """
    data = max((given[i] for i in operands if i not in chooses), default=NUMBER)
    chosen = max((given[i] for i in operands if i in chooses), default=NUMBER)
    if not chosen.moves:
        return max(data, chosen)
    return Origin(CHOSEN, data.size, data.path) if data.owned else FLOWING


def contracted(left: Origin, right: Origin) -> str:
    """The leaf that a product is done for; empty where it is one of activations.

    A leaf before entries that were chosen of one, and before activations; of two leaves the larger.
    """
    owned = [at for at in (left, right) if at.owned]
    if not owned or left.kind == right.kind == CHOSEN:
        return ""
    return max(owned, key=lambda at: (at.kind == LEAF, at.size)).path
