"""The HTML report of a run: one self-contained page, without scripts, fonts or external images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from nnopt_jax.report.leaf_report import LeafRow
from nnopt_jax.report.result import Measure, Result, amount, measure_rows
from nnopt_jax.report.svg import Band, Line, bar_chart, histogram, line_chart

__all__ = ["page"]

_HISTOGRAMS, _BARS = 24, 12


def page(result: Result) -> str:
    """Return the HTML report of a run.

    Args:
        result: the result of the run.

    Returns:
        A complete HTML document, which depends only on the result.

    Example:
        >>> from nnopt_jax.report import Result, page
        >>> "<title>demo</title>" in page(Result("demo", (), (), (), "", ()))
        True
    """
    sections = (
        _section("Run", "plots", [*_training(result.rows), _bytes(result.leaves)]),
        _section("Before and after", "card", [measure_rows(result.measures)]),
        "".join(f'<p class="note">{escape(note)}</p>' for note in result.notes),
        _section("Weights that are not zero", "small", _histograms(result.leaves)),
        _section("Leaves", "card", [_leaves(result.leaves)]),
        f"<details><summary>Recipe</summary><pre>{escape(result.recipe)}</pre></details>",
    )
    css = resources.files("nnopt_jax.report").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(result.title)}</title><style>\n{css}</style></head><body>"
        f"<header><h1>{escape(result.title)}</h1><p>{_subtitle(result)}</p></header>"
        f"{_tiles(result.measures)}{''.join(sections)}</body></html>\n"
    )


def _section(title: str, kind: str, parts: Sequence[str]) -> str:
    body = "".join(parts)
    return f'<h2>{title}</h2><div class="{kind}">{body}</div>' if body else ""


def _subtitle(result: Result) -> str:
    size = sum(leaf.size for leaf in result.leaves)
    steps = max((row["step"] for row in result.rows), default=0)
    stages = list(dict.fromkeys(row["stage"] for row in result.rows))
    return f"{size:,} parameters, {steps:,} steps: {escape(', '.join(stages))}"


def _tiles(measures: Sequence[Measure]) -> str:
    """Return the most important measures as large tiles."""
    chosen = [m for m in measures if m.name in ("test error", "on disk", "in memory", "per weight")]
    tiles = "".join(
        f'<div class="tile"><span>{escape(m.name)}</span><b>{_large(m)}</b>'
        f"<em>{escape(_beside(m))}</em></div>"
        for m in chosen
    )
    return f'<div class="tiles">{tiles}</div>' if tiles else ""


def _beside(m: Measure) -> str:
    before = "" if m.before is None else f"dense {amount(m.before, m.unit)}"
    return f"{before}, {m.note}" if m.unit == "bytes" else before


def _large(m: Measure) -> str:
    return amount(m.after, m.unit) + (" B" if m.unit == "bytes" else "")


def _training(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    bands = _bands(rows)

    def series(name: str, scale: float = 1.0) -> list[tuple[float, float]]:
        return [(row["step"], scale * row[name]) for row in rows if name in row]

    def percent(value: float) -> str:
        return f"{value:.3g} %"

    errors = [
        Line("validation", series("valid_error", 100), "var(--a)"),
        Line("test, at the end of a stage", series("test_error", 100), "var(--b)", dots=True),
    ]
    zeros = series("sparsity", 100)
    return [
        line_chart("Loss", [Line("loss", _smooth(series("loss")), "var(--a)")], bands, log=True),
        line_chart("Error", errors, bands, log=True, label=percent),
        line_chart("Zeros", [Line("zeros", zeros, "var(--c)")], bands, label=percent)
        if any(y for _, y in zeros)
        else "",
    ]


def _bands(rows: Sequence[Mapping[str, Any]]) -> list[Band]:
    """Return a band for each stage: its name, first and last step."""
    ends: dict[str, float] = {}
    for row in rows:
        ends[row["stage"]] = row["step"]
    starts = [0.0, *ends.values()]
    return [Band(name, *span) for name, *span in zip(ends, starts, ends.values(), strict=False)]


def _smooth(points: Sequence[tuple[float, float]], width: int = 5) -> list[tuple[float, float]]:
    """Return means of neighboring points, since the loss of one batch is noisy."""
    means = []
    for i, (x, _) in enumerate(points):
        near = [y for _, y in points[max(0, i - width // 2) : i + width // 2 + 1]]
        means.append((x, sum(near) / len(near)))
    return means


def _bytes(leaves: Sequence[LeafRow]) -> str:
    if not leaves:
        return ""
    leaves = sorted(leaves, key=lambda leaf: -leaf.memory_bits)[:_BARS]
    memory = [(0.0, leaf.memory_bits / 8) for leaf in leaves]
    series = [Line("in memory", memory, "var(--a)")]
    if all(leaf.file_bytes is not None for leaf in leaves):
        series.append(Line("in the file", [(0, leaf.file_bytes or 0) for leaf in leaves],
                           "var(--b)"))  # fmt: skip
    return bar_chart("Bytes of the largest leaves", [leaf.path for leaf in leaves], series)


def _histograms(leaves: Sequence[LeafRow]) -> list[str]:
    """Return histograms of the values of the largest leaves, in the order of the tree."""
    largest = sorted(leaves, key=lambda leaf: -leaf.size)[:_HISTOGRAMS]
    return [
        histogram(
            leaf.path, f"{leaf.size - leaf.zeros:,} of {leaf.size:,}", leaf.edges, leaf.counts
        )
        for leaf in leaves
        if leaf in largest
    ]


def _leaves(leaves: Sequence[LeafRow]) -> str:
    rows = "".join(
        f'<tr><td>{escape(leaf.path)}</td><td class="e">{escape(leaf.expression)}</td>'
        f'<td class="n">{" x ".join(map(str, leaf.shape))}</td>'
        f'<td class="n">{100 * leaf.zeros / max(leaf.size, 1):.1f} %</td>'
        f'<td class="n">{amount(leaf.file_bytes, "bytes")}</td>'
        f'<td class="n">{leaf.memory_bits / 8:,.0f}</td><td>{escape(leaf.call)}</td></tr>'
        for leaf in leaves
    )
    head = (
        '<tr><th>leaf</th><th>expression</th><th class="n">shape</th><th class="n">zeros</th>'
        '<th class="n">bytes in file</th><th class="n">bytes in memory</th><th>in a call</th></tr>'
    )
    return f"<table>{head}{rows}</table>" if rows else ""
