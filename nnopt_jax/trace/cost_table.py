"""The cost table of a function, and the comparison of two such tables."""

from __future__ import annotations

import dataclasses
from typing import Any

from nnopt_jax.columns import Tabular, aligned

_UNITS = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))


def amount(number: float) -> str:
    """Format a number with three significant digits and a prefix: k, M, G or T.

    Example:
        >>> from nnopt_jax.trace.cost_table import amount
        >>> [amount(n) for n in (0, 999, 1234, 999_999, 4_089_184_256)]
        ['0', '999', '1.23 k', '1.00 M', '4.09 G']
    """
    for size, unit in _UNITS:
        # With three digits, 999,500 rounds to 1.00 M rather than to 1000 k.
        if number >= 0.9995 * size:
            return digits(number / size) + unit
    return digits(number) if number % 1 else str(int(number))


def digits(number: float) -> str:
    """Format a number with three significant digits.

    Example:
        >>> from nnopt_jax.trace.cost_table import digits
        >>> [digits(n) for n in (0.01234, 2.0, 123.4)]
        ['0.0123', '2.00', '123']
    """
    return f"{number:#.3g}".rstrip(".")


@dataclasses.dataclass(frozen=True, repr=False)
class CostComparison(Tabular):
    """The cost of a call before and after a change, with ratios of work, bytes and time.

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

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        times = {"FLOPs": self.flops, "bytes": self.bytes, "ms": self.latency}
        return ", ".join(f"{name} {digits(x)}x" for name, x in times.items() if x)

    @property
    def flops(self) -> float | None:
        """The FLOPs before the change divided by those after; None if none remain."""
        return _times(self.before.flops, self.after.flops)

    @property
    def bytes(self) -> float | None:
        """The bytes of the leaves before the change divided by those after."""
        return _times(self.before.bytes, self.after.bytes)

    @property
    def traffic(self) -> float | None:
        """The activation bytes of contractions before the change divided by those after."""
        return _times(*(cost.bytes_read + cost.bytes_written for cost in self._both))

    @property
    def latency(self) -> float | None:
        """The latency before the change divided by that after; None unless both were measured."""
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
        """Return the table of both costs and their ratios as text."""
        first, second = ({row.path: row for row in cost.rows} for cost in self._both)
        lines = [["leaf", "FLOPs", "bytes", "activation bytes", "ms"]]
        for path in dict.fromkeys((*first, *second)):
            lines.append([path, *_cells(first.get(path), second.get(path)), ""])
        times = "" if self.latency is None else _cell(self.before.latency, self.after.latency)
        lines.append(["total", *_cells(*self._both), times])
        cells = lines if times else [line[:-1] for line in lines]
        return "\n".join(aligned(cells, numbers=len(cells[0]) - 1))


def _cells(before: Cost | CostRow | None, after: Cost | CostRow | None) -> list[str]:
    """Return the cells of a row of the comparison: FLOPs, bytes and activation bytes."""
    pair = [
        (of.flops, of.bytes, of.bytes_read + of.bytes_written) if of else (0, 0, 0)
        for of in (before, after)
    ]
    return [_cell(a, b) for a, b in zip(*pair, strict=True)]


def _times(before: float, after: float) -> float | None:
    return before / after if after else None


def _cell(before: float | None, after: float | None) -> str:
    """Format one cell of the comparison, such as `8.19 k -> 2.05 k (4.00x)`."""
    if before is None or after is None:
        return ""
    if before == after == 0:
        return "0"
    text = f"{amount(before)} -> {amount(after)}"
    return f"{text} ({digits(before / after)}x)" if before and after else text


@dataclasses.dataclass(frozen=True, repr=False)
class CostRow(Tabular):
    """The cost of one leaf: its size, and the FLOPs and bytes of the steps that use it.

    Args:
        path: the path of the leaf, or `(activations)` for products without a leaf, or
            `(elementwise)` for other steps that do not belong to a single leaf.
        form: how the leaf is stored, on one line; empty without a leaf.
        parameters: the number of elements of the array that the leaf stands for.
        bytes: the size of all arrays that store the leaf.
        macs: multiply-accumulates of contractions with it.
        flops: two for each multiply-accumulate, and one for each entry of other steps that belong
            to it alone, such as casts and dequantization.
        transcendentals: exponentials, roots and so on, one for each entry.
        bytes_read: the size of the activations that contractions with it read.
        bytes_written: the size of the activations that contractions with it or lookups write.

    Example:
        >>> from nnopt_jax.trace import CostRow
        >>> CostRow("kernel", "float32[4,4]", 16, 64, 32, 64, 0, 32, 32).intensity
        0.5
    """

    path: str
    form: str
    parameters: int
    bytes: int
    macs: int
    flops: int
    transcendentals: int
    bytes_read: int
    bytes_written: int

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        return f"{self.path!r}, {amount(self.flops)} FLOPs, {amount(self.bytes)} bytes"

    @property
    def intensity(self) -> float | None:
        """FLOPs per byte moved, with the leaf read once; None if nothing moves."""
        return _intensity(self)


@dataclasses.dataclass(frozen=True, repr=False)
class Cost(Tabular):
    """The cost of a call of a function, for each leaf and in total.

    Args:
        rows: a row for each leaf in the order of the tree, then rows without a leaf.
        latency: milliseconds of a call; None if it was not measured.
        notes: caveats about the numbers.

    Example:
        >>> import jax
        >>> import nnopt_jax as nnopt
        >>> shape = jax.ShapeDtypeStruct
        >>> params = {"w": shape((8, 4), "float32"), "b": shape((4,), "float32")}
        >>> x = shape((2, 8), "float32")
        >>> cost = nnopt.graph(lambda p, x: x @ p["w"] + p["b"][None], params, x).cost()
        >>> cost.flops, cost.macs, cost.bytes, cost.rows[1].path
        (136, 64, 144, 'w')
    """

    rows: tuple[CostRow, ...]
    latency: float | None = None
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        time = "" if self.latency is None else f", {digits(self.latency)} ms"
        return f"{amount(self.flops)} FLOPs, {amount(self.bytes)} bytes of parameters{time}"

    @property
    def parameters(self) -> int:
        """The number of elements of all leaves."""
        return sum(row.parameters for row in self.rows)

    @property
    def bytes(self) -> int:
        """The size in bytes of all arrays that store the leaves."""
        return sum(row.bytes for row in self.rows)

    @property
    def macs(self) -> int:
        """The multiply-accumulates of all contractions."""
        return sum(row.macs for row in self.rows)

    @property
    def flops(self) -> int:
        """The FLOPs of all steps: two for each multiply-accumulate, else one for each entry."""
        return sum(row.flops for row in self.rows)

    @property
    def transcendentals(self) -> int:
        """The number of exponentials, roots and the like, which XLA does not count as FLOPs."""
        return sum(row.transcendentals for row in self.rows)

    @property
    def bytes_read(self) -> int:
        """The size in bytes of the activations that contractions read."""
        return sum(row.bytes_read for row in self.rows)

    @property
    def bytes_written(self) -> int:
        """The size in bytes of the activations that contractions and lookups write."""
        return sum(row.bytes_written for row in self.rows)

    @property
    def intensity(self) -> float | None:
        """FLOPs per byte moved, with every leaf read once; None if nothing moves."""
        return _intensity(self)

    def share(self, row: CostRow) -> float:
        """Return the percentage of the total FLOPs that a row accounts for."""
        return 100 * row.flops / max(self.flops, 1)

    def against(self, after: Cost) -> CostComparison:
        """Compare this cost with the cost after a change, by FLOPs, bytes and time."""
        return CostComparison(self, after)

    def asdict(self) -> dict[str, Any]:
        """Return the cost as dictionaries, lists, strings and numbers for JSON."""
        rows = [
            dataclasses.asdict(row) | {"intensity": row.intensity, "share": self.share(row)}
            for row in self.rows
        ]
        totals = {name: getattr(self, name) for name in (*_SUMMED, "intensity", "latency")}
        return {"rows": rows, "total": totals, "notes": list(self.notes)}

    def __str__(self) -> str:
        """Return the table of leaves, with totals and notes, as text."""
        lines = [_HEADER, *(self._cells(row, row.path, row.form) for row in self.rows)]
        lines.append(self._cells(self, "total", ""))
        if self.latency is not None:
            ends = ["ms", *([""] * len(self.rows)), digits(self.latency)]
            lines = [(*line, end) for line, end in zip(lines, ends, strict=True)]
        return "\n".join([*aligned(lines, numbers=len(lines[0]) - 2), *self.notes])

    def _cells(self, of: CostRow | Cost, name: str, form: str) -> tuple[str, ...]:
        share = self.share(of) if isinstance(of, CostRow) else 100.0
        intensity = "" if of.intensity is None else digits(of.intensity)
        counts = [amount(getattr(of, name)) for name in _SUMMED]
        return (name, form, *counts[:4], f"{share:.1f}", *counts[4:], intensity)


_SUMMED = ("parameters", "bytes", "macs", "flops", "transcendentals", "bytes_read", "bytes_written")
_HEADER = ("leaf", "form", "parameters", "bytes", "MACs", "FLOPs", "%", "transc.",
           "bytes read", "written", "FLOPs/byte")  # fmt: skip


def _intensity(of: CostRow | Cost) -> float | None:
    moved = of.bytes + of.bytes_read + of.bytes_written
    return of.flops / moved if moved else None
