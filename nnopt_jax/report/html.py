"""One HTML page that needs nothing beside it: no script, no font, no picture to fetch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nnopt_jax.report.leaf_report import LeafRow
from nnopt_jax.report.result import Measure, Result, amount, measure_rows
from nnopt_jax.report.svg import Band, Line, bar_chart, histogram, line_chart

__all__ = ["page"]

_HISTOGRAMS, _BARS = 24, 12

# The look of the report, for light and dark.
_CSS = """
:root { color-scheme: light dark;
  --bg: #f7f8fa; --card: #ffffff; --ink: #1b2330; --soft: #667085; --rule: #e4e7ec;
  --band: #f2f4f7; --a: #2f6fed; --b: #e07b39; --c: #12946f; --good: #0d7a55; }
@media (prefers-color-scheme: dark) { :root {
  --bg: #10141b; --card: #181e27; --ink: #e7ebf1; --soft: #98a2b3; --rule: #2a3240;
  --band: #1f2631; --a: #7aa5ff; --b: #f2a06b; --c: #4cc9a0; --good: #4cc9a0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 40px 24px 64px; max-width: 1120px; background: var(--bg);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
header p, small, .note { color: var(--soft); }
h1 { margin: 0; font-size: 28px; letter-spacing: -0.02em; }
h2 { margin: 40px 0 12px; font-size: 17px; }
header p { margin: 4px 0 0; }
.tiles, .plots, .small { display: grid; gap: 16px; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); margin-top: 24px; }
.plots { grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); }
.tile, figure, .card { background: var(--card); border: 1px solid var(--rule);
  border-radius: 12px; padding: 16px 18px; margin: 0; }
.tile b { display: block; font-size: 26px; letter-spacing: -0.02em; line-height: 1.25; }
.tile span { color: var(--soft); font-size: 13px; }
.tile em { display: block; color: var(--good); font-style: normal; font-size: 13px; }
.card { overflow-x: auto; padding: 6px 18px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 14px 9px 0; text-align: left; border-top: 1px solid var(--rule); }
tr:first-child > * { border-top: 0; }
th { color: var(--soft); font-weight: 500; font-size: 13px; }
.n { text-align: right; white-space: nowrap; }
td.e, pre { font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
td.e { overflow-wrap: anywhere; }
figcaption { display: flex; justify-content: space-between; gap: 12px; margin-bottom: 10px;
  font-weight: 600; font-size: 14px; }
figcaption small { font-weight: 400; }
.legend { display: flex; gap: 14px; font-weight: 400; font-size: 13px; color: var(--soft); }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 3px;
  margin-right: 6px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 11.5px; }
text.y { text-anchor: end; } text.x, text.stage { text-anchor: middle; }
.grid { stroke: var(--rule); } .band { fill: var(--band); }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
details { margin-top: 32px; } summary { cursor: pointer; color: var(--soft); }
pre { overflow-x: auto; }
@media print { body { max-width: none; } figure, .tile { break-inside: avoid; } }
"""


def page(result: Result) -> str:
    """Draw the report of a run.

    Args:
        result: the result of the run.

    Returns:
        A complete HTML document, the same for the same result.

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
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(result.title)}</title><style>{_CSS}</style></head><body>"
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
    """Return the measures that matter most, large."""
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
    """Return where each stage begins and ends."""
    ends: dict[str, float] = {}
    for row in rows:
        ends[row["stage"]] = row["step"]
    starts = [0.0, *ends.values()]
    return [Band(name, *span) for name, *span in zip(ends, starts, ends.values(), strict=False)]


def _smooth(points: Sequence[tuple[float, float]], width: int = 5) -> list[tuple[float, float]]:
    """Return means of neighboring points: the loss of one batch is noise."""
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
    """Return histograms of the largest leaves, in their own order."""
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
