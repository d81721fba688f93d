"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from nnopt_jax.report.leaves import compare
from nnopt_jax.report.summary import Latency, LeafRow, Summary, amount


def table(summary: Summary) -> Table:
    """The final table of a run: each measure before and after.

    Args:
        summary: the run.

    Returns:
        A table for `rich.console.Console.print`.

    Example:
        >>> from rich.console import Console
        >>> from nnopt_jax.report import Measure, Summary, table
        >>> summary = Summary("demo", (Measure("on disk", "bytes", 400, 20),), (), (), "", ())
        >>> Console(width=60).print(table(summary))
         demo      dense   packed
        ──────────────────────────
         on disk     400       20
    """
    made = _plain(summary.title)
    for name in ("dense", "packed"):
        made.add_column(name, justify="right", no_wrap=True)
    notes = any(measure.note for measure in summary.measures)
    if notes:
        made.add_column("", style="dim")
    for m in summary.measures:
        cells = m.name, amount(m.before, m.unit), amount(m.after, m.unit)
        made.add_row(*cells, *([m.note] if notes else []))
    return made


def leaf_table(
    title: str, leaves: tuple[LeafRow, ...], total: int | None = None, program: int = 0
) -> Table:
    """One row for each leaf: expression, shape and sizes, with a total.

    Args:
        title: what the leaves belong to.
        leaves: the rows.
        total: size of the whole file in bytes, where there is one.
        program: bytes of it that are a program.

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
    """One row for each leaf of two models: both expressions, and how far the values are apart.

    Args:
        left_name: what the left model is called.
        right_name: what the right one is called.
        left: parameters, dense or packed.
        right: likewise.

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
    """One row for each size of batch: the median and the least time, dense and packed.

    Args:
        title: what was timed.
        rows: by the number of examples in a batch.

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
    made.title, made.title_justify = Text(title), "left"  # a column of that name takes its width
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
