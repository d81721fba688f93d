"""The table of the steps that use each leaf."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from nnopt_jax.columns import aligned
from nnopt_jax.trace.jaxpr import Equation, line
from nnopt_jax.trace.statistics.leaf_part import REPEATED, LeafPart
from nnopt_jax.trace.statistics.product_use import ProductUse
from nnopt_jax.typing import Shape


class LeafUse(NamedTuple):
    """One use of a leaf.

    Axes are those of the leaf itself, even if it was moved before.

    Args:
        path: the path of the leaf.
        number: the number of the use, in the order of the program.
        primitive: the name of the primitive.
        contracted: axes that are summed over, or looked up: a product with a one-hot row would
            sum over those.
        batch: axes of which each entry has a use of its own: layers of a scan, heads, experts.
        partial: axes that the use covers only in part.
        reason: why nothing can be measured there; empty if something can.
        line: the user's line, if that is known.

    Example:
        >>> from nnopt_jax.trace import LeafUse
        >>> LeafUse("w", 0, "dot_general", (0,), (), (), "", "").contracted
        (0,)
    """

    path: str
    number: int
    primitive: str
    contracted: tuple[int, ...]
    batch: tuple[int, ...]
    partial: tuple[int, ...]
    reason: str
    line: str


@dataclasses.dataclass(frozen=True)
class LeafUses(Sequence[LeafUse]):
    """All uses of leaves: a sequence that prints as a table.

    Args:
        uses: the uses in the order of the leaves, and then of the program.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
        >>> apply = lambda p, x: x @ p["w"].T.T + p["b"]
        >>> found = nnopt.graph(apply, params, jnp.ones(2)).uses
        >>> found.of("w")[0].contracted, len(found)
        ((0,), 2)
    """

    uses: tuple[LeafUse, ...]

    def __getitem__(self, at: Any) -> Any:
        """Return the use at a position."""
        return self.uses[at]

    def __len__(self) -> int:
        """Return the number of uses."""
        return len(self.uses)

    def __iter__(self) -> Iterator[LeafUse]:
        """Iterate over the uses."""
        return iter(self.uses)

    def of(self, path: str) -> tuple[LeafUse, ...]:
        """Return the uses of one leaf."""
        return tuple(use for use in self.uses if use.path == path)

    def __str__(self) -> str:
        """Return the table as text."""
        header = ("leaf", "use", "used by", "contracted", "batch", "partial", "why not", "line")
        cells: list[tuple[str, ...]] = [header]
        for use in self.uses:
            axes = (_listed(which) for which in (use.contracted, use.batch, use.partial))
            cells.append((use.path, str(use.number), use.primitive, *axes, use.reason, use.line))
        return "\n".join(aligned(cells))


def _listed(axes: tuple[int, ...]) -> str:
    return ",".join(map(str, axes)) or "-"


def leaf_use(
    shape: Shape, part: LeafPart, equation: Equation, product: ProductUse, reason: str
) -> LeafUse:
    """Return the row of one use; its number is set once all uses are known.

    Args:
        shape: the shape of the leaf.
        part: the part of the leaf that is used.
        equation: the step.
        product: the product that it is used in.
        reason: why nothing can be measured; empty if something can.
    """
    outputs = {f.axis for f in product.outs} - {f.axis for f in product.groups}
    batch = {f.axis for f in (*part.scanned, *product.batch) if f.axis != REPEATED}
    batch |= {axis for axis in part.taken if shape[axis] > 1 and axis not in product.contracted}
    return LeafUse(
        part.path, 0, equation.primitive.name, product.contracted,
        tuple(sorted(batch - outputs)), _partial(shape, part), reason, line(equation),
    )  # fmt: skip


def _partial(shape: Shape, part: LeafPart) -> tuple[int, ...]:
    counts = [
        math.prod(factor.size for factor in part.factors if factor.axis == axis)
        for axis in range(len(shape))
    ]
    return tuple(axis for axis, n in enumerate(shape) if counts[axis] != n)


def leaf_uses(uses: Iterable[LeafUse], paths: Sequence[str]) -> LeafUses:
    """Return the table of uses, sorted by leaf."""
    order = {path: at for at, path in enumerate(paths)}
    return LeafUses(tuple(sorted(uses, key=lambda use: (order[use.path], use.number))))
