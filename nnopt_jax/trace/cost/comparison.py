"""Comparison of the costs of two functions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from nnopt_jax.columns import aligned
from nnopt_jax.trace.cost.amounts import amount, digits

if TYPE_CHECKING:
    from nnopt_jax.trace.cost.table import Cost, CostRow


@dataclasses.dataclass(frozen=True)
class CostComparison:
    """The cost of a call before and after a change: work, bytes and time, compared separately.

    Args:
        before: the first cost.
        after: the second one.

    Example:
        >>> import jax
        >>> import nnopt_jax as nnopt
        >>> def of(width):
        ...     x, w = (jax.ShapeDtypeStruct((n, width), "float32") for n in (1, width))
        ...     return nnopt.graph(lambda w, x: x @ w, w, x).cost()
        >>> print(of(64).against(of(32)))
        leaf                           FLOPs                     bytes    activation bytes
        argument 1  8.19 k -> 2.05 k (4.00x)  16.4 k -> 4.10 k (4.00x)  512 -> 256 (2.00x)
        total       8.19 k -> 2.05 k (4.00x)  16.4 k -> 4.10 k (4.00x)  512 -> 256 (2.00x)
    """

    before: Cost
    after: Cost

    @property
    def flops(self) -> float | None:
        """The FLOPs before divided by those after; None if none remain."""
        return _times(self.before.flops, self.after.flops)

    @property
    def bytes(self) -> float | None:
        """The bytes of the leaves before divided by those after."""
        return _times(self.before.bytes, self.after.bytes)

    @property
    def traffic(self) -> float | None:
        """The activation bytes at contractions before divided by those after."""
        return _times(*(cost.bytes_read + cost.bytes_written for cost in self._both))

    @property
    def latency(self) -> float | None:
        """The latency before divided by that after; None unless both were measured."""
        if self.before.latency is None or self.after.latency is None:
            return None
        return _times(self.before.latency, self.after.latency)

    @property
    def _both(self) -> tuple[Cost, Cost]:
        return self.before, self.after

    def asdict(self) -> dict[str, Any]:
        """Return the ratios and both costs as a dictionary for JSON."""
        ratios = {name: getattr(self, name) for name in ("flops", "bytes", "traffic", "latency")}
        return {"ratios": ratios, "before": self.before.asdict(), "after": self.after.asdict()}

    def __str__(self) -> str:
        """Return the comparison as a table."""
        first, second = ({row.path: row for row in cost.rows} for cost in self._both)
        lines = [["leaf", "FLOPs", "bytes", "activation bytes", "ms"]]
        for path in dict.fromkeys((*first, *second)):
            lines.append([path, *_cells(first.get(path), second.get(path)), ""])
        times = "" if self.latency is None else _cell(self.before.latency, self.after.latency)
        lines.append(["total", *_cells(*self._both), times])
        shown = lines if times else [line[:-1] for line in lines]
        return "\n".join(aligned(shown, numbers=len(shown[0]) - 1))


def _cells(before: Cost | CostRow | None, after: Cost | CostRow | None) -> list[str]:
    """Return the cells of a row: FLOPs, bytes and activation bytes."""
    pair = [
        (of.flops, of.bytes, of.bytes_read + of.bytes_written) if of else (0, 0, 0)
        for of in (before, after)
    ]
    return [_cell(a, b) for a, b in zip(*pair, strict=True)]


def _times(before: float, after: float) -> float | None:
    return before / after if after else None


def _cell(before: float | None, after: float | None) -> str:
    """Format one cell, such as `8.19 k -> 2.05 k (4.00x)`."""
    if before is None or after is None:
        return ""
    if before == after == 0:
        return "0"
    said = f"{amount(before)} -> {amount(after)}"
    return f"{said} ({digits(before / after)}x)" if before and after else said
