"""The result of a run as plain data, and its tables for a terminal."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnopt_jax.report.leaf_report import LeafRow, compare

__all__ = [
    "Latency", "Measure", "Result", "amount", "diff_table", "latency_table", "leaf_table",
    "measure_rows", "render", "result_table",
]  # fmt: skip

_WIDTH = 100


@dataclasses.dataclass(frozen=True, repr=False)
class Measure:
    """One row of the final table: a measure before and after, with its unit.

    Args:
        name: the quantity.
        unit: `"bytes"`, `"%"`, `"ms"` or `"bits"`.
        before: the figure of the dense model; None if it was not measured.
        after: the figure of the packed model.
        note: a remark on the numbers.

    Example:
        >>> Measure("on disk", "bytes", 400, 20)
        Measure('on disk': 400 -> 20)
    """

    name: str
    unit: str
    before: float | None
    after: float | None
    note: str = ""

    @property
    def cells(self) -> tuple[str, str, str]:
        """Return the name and both figures with their unit."""
        return self.name, amount(self.before, self.unit), amount(self.after, self.unit)

    def __repr__(self) -> str:
        """Return the figures as the table shows them."""
        name, before, after = self.cells
        return f"Measure({name!r}: {before} -> {after})"


@dataclasses.dataclass(frozen=True, repr=False)
class Latency:
    """The times of one call of a network, dense and packed, in milliseconds.

    Args:
        dense: the median time of calls on dense parameters.
        packed: the median time of calls on packed parameters.
        dense_least: the least time of a call on dense parameters.
        packed_least: the least time of a call on packed parameters.
        ratio: the median over pairs of dense time divided by packed time; above 1, packed is
            faster.
    """

    dense: float
    packed: float
    dense_least: float
    packed_least: float
    ratio: float

    def __repr__(self) -> str:
        """Return the medians and the ratio."""
        dense, packed = amount(self.dense, "ms"), amount(self.packed, "ms")
        return f"Latency(dense {dense}, packed {packed}, {self.ratio:.3g}x as fast)"


@dataclasses.dataclass(frozen=True, repr=False)
class Result:
    """The result of a run, for the final table (`str`) and the HTML report.

    Args:
        title: the name of the run.
        measures: the final table.
        leaves: one row for each leaf.
        rows: the rows of `metrics.jsonl`.
        recipe: the recipe with its defaults, as YAML.
        notes: remarks under the table.

    Example:
        >>> from nnopt_jax.report import Measure, Result
        >>> small = Result("demo", (Measure("on disk", "bytes", 400, 20),), (), (), "", ())
        >>> small
        Result('demo': on disk 400 -> 20)
        >>> Result.from_json(small.to_json()) == small
        True
    """

    title: str
    measures: tuple[Measure, ...]
    leaves: tuple[LeafRow, ...]
    rows: tuple[Mapping[str, Any], ...]
    recipe: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the result as dictionaries and lists for `json.dumps`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """Restore a result from `to_json`, also after serialization as JSON."""
        return cls(
            title=data["title"],
            measures=tuple(Measure(**item) for item in data["measures"]),
            leaves=tuple(LeafRow(**_tuples(item)) for item in data["leaves"]),
            rows=tuple(data["rows"]),
            recipe=data["recipe"],
            notes=tuple(data["notes"]),
        )

    def __repr__(self) -> str:
        """Return the error and the size on disk."""
        shown = [m.cells for m in self.measures if m.name in ("test error", "on disk")]
        figures = ", ".join(f"{name} {before} -> {after}" for name, before, after in shown)
        return f"Result({self.title!r}: {figures})"

    def __str__(self) -> str:
        """Return the final table and the notes."""
        return "\n".join([render(result_table(self)), "", *self.notes])

    def _repr_html_(self) -> str:
        """Return the final table for a notebook."""
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return f"<b>{escape(self.title)}</b>{measure_rows(self.measures)}{notes}"


def _tuples(item: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, Sequence) and not isinstance(v, str) else v
            for k, v in item.items()}  # fmt: skip


def amount(value: float | None, unit: str) -> str:
    """Return a number with its unit, at three or four significant figures.

    Args:
        value: the number, or None for a dash.
        unit: `"bytes"`, `"%"`, `"ms"` or `"bits"`.

    Example:
        >>> from nnopt_jax.report import amount
        >>> amount(9_431, "bytes"), amount(1.4, "%"), amount(0.1234, "ms"), amount(None, "bits")
        ('9,431', '1.40 %', '0.123 ms', '-')
    """
    if value is None:
        return "-"
    if unit == "bytes":
        return f"{value:,.0f}"
    text = f"{value:.2f}" if unit == "%" else f"{value:.3g}"
    return f"{text} {unit}"


def measure_rows(measures: Sequence[Measure]) -> str:
    """Return the final table as HTML; empty for an empty list of measures.

    Example:
        >>> measure_rows([Measure("on disk", "bytes", 400, 20)]).count("<tr>")
        2
    """
    head = '<tr><th></th><th class="n">dense</th><th class="n">packed</th><th></th></tr>'
    rows = ""
    for m in measures:
        name, before, after = m.cells
        rows += (
            f'<tr><td>{escape(name)}</td><td class="n">{before}</td><td class="n">{after}</td>'
            f'<td class="note">{escape(m.note)}</td></tr>'
        )
    return f"<table>{head}{rows}</table>" if rows else ""


def render(table: Table) -> str:
    """Return a table as plain text of at most 100 columns.

    Args:
        table: the table, such as the result of `result_table`.

    Example:
        >>> print(render(latency_table("demo", {8: Latency(2.0, 1.0, 1.9, 0.9, 2.0)})).split()[0])
        demo
    """
    console = Console(file=io.StringIO(), width=_WIDTH, no_color=True, legacy_windows=False)
    console.print(table)
    lines = console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    return "\n".join(line.rstrip() for line in lines)


def result_table(result: Result) -> Table:
    """Return the final table of a run: each measure before and after.

    Args:
        result: the result of the run.

    Returns:
        A table for `rich.console.Console.print`.

    Example:
        >>> from rich.console import Console
        >>> from nnopt_jax.report import Measure, Result, result_table
        >>> result = Result("demo", (Measure("on disk", "bytes", 400, 20),), (), (), "", ())
        >>> Console(width=60).print(result_table(result))
         demo      dense   packed
        ──────────────────────────
         on disk     400       20
    """
    made = _plain(result.title)
    for name in ("dense", "packed"):
        made.add_column(name, justify="right", no_wrap=True)
    notes = any(measure.note for measure in result.measures)
    if notes:
        made.add_column("", style="dim")
    for m in result.measures:
        made.add_row(*m.cells, *([m.note] if notes else []))
    return made


def leaf_table(
    title: str, leaves: tuple[LeafRow, ...], total: int | None = None, program: int = 0
) -> Table:
    """Return a table with a row for each leaf: packed parameter, shape and sizes, and a total.

    Args:
        title: the name of the file or the run.
        leaves: the rows.
        total: the size of the whole file in bytes, if there is one.
        program: the bytes of its program.

    Returns:
        A table for `rich.console.Console.print`.

    Example:
        >>> from nnopt_jax.report import LeafRow, leaf_table
        >>> leaf_table("demo", (LeafRow("w", "Bits", (8,), 3, 8, 0),)).columns[3].footer
        '3'
    """
    made = _plain(title)
    made.show_footer = True
    in_file = sum(leaf.file_bytes or 0 for leaf in leaves) if total is None else total
    in_memory = sum(-(-leaf.memory_bits // 8) for leaf in leaves)
    size = sum(leaf.size for leaf in leaves)
    made.columns[0].footer = "total"
    made.add_column("expression", overflow="fold")
    footers = (f"{size:,}", f"{in_file:,}", f"{in_memory:,}", _rate(in_file, size))
    names = ("shape", "in file", "in memory", "bits/weight")
    for name, footer in zip(names, footers, strict=True):
        made.add_column(name, footer, justify="right", no_wrap=True)
    for leaf in leaves:
        made.add_row(
            leaf.path,
            leaf.expression,
            " x ".join(map(str, leaf.shape)) or "scalar",
            amount(leaf.file_bytes, "bytes"),
            f"{-(-leaf.memory_bits // 8):,}",
            "-" if leaf.file_bytes is None else _rate(leaf.file_bytes, leaf.size),
        )
    if total is not None:
        rest = total - program - sum(leaf.file_bytes or 0 for leaf in leaves)
        if program:
            made.add_row("", "program", "", f"{program:,}", "", "")
        made.add_row("", "description, checksum", "", f"{rest:,}", "", "")
    return made


def diff_table(left_name: str, right_name: str, left: Any, right: Any) -> Table:
    """Return a table that compares two models leaf by leaf: forms and greatest differences.

    Args:
        left_name: the name of the left model.
        right_name: the name of the right model.
        left: parameters, dense or packed.
        right: the other parameters, dense or packed.

    Returns:
        A table for `rich.console.Console.print`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.report import diff_table
        >>> diff_table("a", "b", {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}).row_count
        1
    """
    made = _plain("leaf")
    for name in (left_name, right_name):
        made.add_column(name, overflow="fold")
    made.add_column("max |difference|", justify="right", no_wrap=True)
    for path, ours, theirs, distance in compare(left, right):
        far = "-" if distance is None else "equal" if distance == 0 else f"{distance:.4g}"
        made.add_row(path, ours or "-", theirs or "-", far)
    return made


def latency_table(title: str, rows: Mapping[int, Latency]) -> Table:
    """Return a table with a row for each batch size: median and least times, dense and packed.

    Args:
        title: the name of the run or the file.
        rows: the latency by batch size.

    Returns:
        A table for `rich.console.Console.print`.

    Example:
        >>> from rich.console import Console
        >>> from nnopt_jax.report import Latency, latency_table
        >>> Console(width=72).print(latency_table("demo", {8: Latency(2.0, 1.0, 1.9, 0.9, 2.0)}))
        demo
                      dense    least   packed    least
        ────────────────────────────────────────────────────────────
         batch of 8    2 ms   1.9 ms     1 ms   0.9 ms   2x as fast
    """
    made = _plain("")
    made.title, made.title_justify = (
        Text(title),
        "left",
    )  # the column of that name takes the remaining width
    for name in ("dense", "least", "packed", "least", ""):
        made.add_column(name, justify="right", no_wrap=True)
    for batch, took in rows.items():
        times = took.dense, took.dense_least, took.packed, took.packed_least
        cells = (amount(time, "ms") for time in times)
        made.add_row(f"batch of {batch}", *cells, f"{took.ratio:.3g}x as fast")
    return made


def _plain(title: str) -> Table:
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=True, padding=(0, 1))
    made.add_column(title, no_wrap=True)
    return made


def _rate(size: int, weights: int) -> str:
    return f"{8 * size / max(weights, 1):.3g}"
