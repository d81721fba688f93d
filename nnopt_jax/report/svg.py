"""Small charts as inline SVG, without scripts, fonts or external files.

Colors are CSS variables of the page, so that charts follow its light and dark modes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Band", "Line", "bar_chart", "histogram", "line_chart", "ticks"]

_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 26, 30
_LEAST = 1e-300  # below this, powers of ten underflow; it counts as zero

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve of a line chart.

    Args:
        name: the name in the legend.
        points: pairs (x, y) in the order of x.
        color: a CSS color, such as `"var(--a)"`.
        dots: whether to mark the points instead of joining them.
    """

    name: str
    points: Sequence[Point]
    color: str
    dots: bool = False


@dataclass(frozen=True)
class Band:
    """A named range of the x axis, such as a stage.

    Args:
        name: the text above the band.
        start: the first x.
        end: the last x.
    """

    name: str
    start: float
    end: float


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers in a range, at steps of 1, 2 or 5 times a power of ten.

    Args:
        low: the least value.
        high: the greatest value.
        count: the approximate number of steps.

    Returns:
        The numbers within the range.

    Example:
        >>> from nnopt_jax.report.svg import ticks
        >>> ticks(0, 1.7)
        [0.0, 0.5, 1.0, 1.5]
    """
    if not high - low > _LEAST:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    size = next((m * power for m in (1, 2, 5) if m * power >= rough), 10 * power)
    first = math.ceil(low / size - 1e-9)
    return [i * size for i in range(first, math.floor(high / size + 1e-9) + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    bands: Sequence[Band] = (),
    *,
    log: bool = False,
    label: Callable[[float], str] = "{:g}".format,
) -> str:
    """Draw curves over a common x axis.

    Args:
        title: the quantity.
        lines: the curves.
        bands: named ranges of the x axis.
        log: whether y is logarithmic.
        label: a function that formats a y value.

    Returns:
        A `<figure>`; empty if there are no points.

    Example:
        >>> from nnopt_jax.report.svg import Line, line_chart
        >>> line_chart("loss", [Line("loss", [(0, 2.0), (10, 1.0)], "red")])[:8]
        '<figure>'
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points] + [b.start for b in bands]
    ys = [y for line in lines for _, y in line.points if y > _LEAST or not log]
    x_of = _scale(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    marks, y_of = _y_axis(ys, log)

    def curve(line: Line) -> str:
        points = [(x, y) for x, y in line.points if y > _LEAST or not log]
        if not line.dots:
            path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
            return f'<polyline class="curve" style="stroke:{line.color}" points="{path}"/>'
        return "".join(
            f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="4" style="fill:{line.color}">'
            f"<title>step {x:,.0f}: {escape(label(y))}</title></circle>"
            for x, y in points
        )

    parts = [_band(band, x_of, i) for i, band in enumerate(bands)]
    parts += [_y_tick(y_of(y), label(y)) for y in marks]
    parts += [_x_tick(x_of(x), f"{x:,.0f}") for x in ticks(min(xs), max(xs), 6)]
    parts += map(curve, lines)
    return _figure(title, lines, _svg(parts, _HEIGHT, title))


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _y_axis(ys: Sequence[float], log: bool) -> tuple[list[float], Callable[[float], float]]:
    """Return the tick values of the axis, and a function from a value to its position."""
    if not ys:
        return [], lambda y: _HEIGHT - _BOTTOM
    if log:
        low, high = math.log10(min(ys)), math.log10(max(ys))
        low, high = (low, high) if high - low > 0.2 else (low - 0.1, high + 0.1)
        place = _scale(low, high, _HEIGHT - _BOTTOM, _TOP)
        powers = range(math.floor(low), math.ceil(high) + 1)
        fine = [m * 10.0**p for p in powers for m in ((1,) if high - low > 2 else (1, 2, 5))]
        marks = [y for y in fine if low <= math.log10(y) <= high]
        return marks, lambda y: place(math.log10(y))
    low, high = min(0.0, *ys), max(ys)
    high += 0.05 * (high - low) or 1.0
    return ticks(low, high), _scale(low, high, _HEIGHT - _BOTTOM, _TOP)


def _band(band: Band, x_of: Callable[[float], float], index: int) -> str:
    x, end = x_of(band.start), x_of(band.end)
    shade = f'<rect class="band" x="{x:.1f}" y="{_TOP}" width="{end - x:.1f}" '
    shade += f'height="{_HEIGHT - _TOP - _BOTTOM}"/>'
    name = f'<text class="stage" x="{(x + end) / 2:.1f}" y="{_TOP - 8}">{escape(band.name)}</text>'
    return (shade if index % 2 else "") + name


def _y_tick(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="y" x="{_LEFT - 8}" y="{y + 4:.1f}">{escape(text)}</text>'
    )


def _x_tick(x: float, text: str) -> str:
    return f'<text class="x" x="{x:.1f}" y="{_HEIGHT - 10}">{escape(text)}</text>'


def bar_chart(title: str, names: Sequence[str], series: Sequence[Line]) -> str:
    """Draw a chart of horizontal bars, grouped by name.

    Args:
        title: the quantity.
        names: the names of the groups.
        series: the series, of which each has one bar in every group; `points` are pairs of anything
            and the length.

    Returns:
        A `<figure>`.

    Example:
        >>> from nnopt_jax.report.svg import Line, bar_chart
        >>> "1,234" in bar_chart("bytes", ["w"], [Line("file", [(0, 1234)], "red")])
        True
    """
    thick, gap, left = 11, 12, 16 + 7 * max(map(len, names), default=0)
    longest = max((y for line in series for _, y in line.points), default=0) or 1
    x_of = _scale(0, longest, left, _WIDTH - 80)
    group = thick * len(series) + gap
    parts = []
    for i, name in enumerate(names):
        top = 6 + i * group
        middle = top + thick * len(series) / 2 + 4
        parts.append(f'<text class="y" x="{left - 8}" y="{middle:.1f}">{escape(name)}</text>')
        for j, line in enumerate(series):
            length, y = line.points[i][1], top + j * thick
            width = max(x_of(length) - left, 1)
            parts.append(
                f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{thick - 2}" rx="2" '
                f'style="fill:{line.color}"/><text class="value" x="{left + width + 6:.1f}" '
                f'y="{y + thick - 3}">{length:,.0f}</text>'
            )
    return _figure(title, series, _svg(parts, 6 + group * len(names), title))


def histogram(title: str, note: str, edges: Sequence[float], counts: Sequence[int]) -> str:
    """Draw a small histogram of counts between edges.

    Args:
        title: the quantity.
        note: a second line.
        edges: the edges of the bins.
        counts: the number of values in each bin.

    Returns:
        A `<figure>`; empty if there are no values.

    Example:
        >>> from nnopt_jax.report.svg import histogram
        >>> histogram("w", "", (0.0, 0.5, 1.0), (3, 1)).count("<rect")
        2
    """
    if not any(counts):
        return ""
    width, height, floor = 300, 110, 92
    bar = width / len(counts)
    y_of = _scale(0, max(counts), floor, 4)
    parts = [
        f'<rect x="{i * bar:.1f}" y="{y_of(n):.1f}" width="{max(bar - 1, 0.5):.1f}" '
        f'height="{floor - y_of(n):.1f}" style="fill:var(--a)"><title>{edges[i]:.3g} to '
        f"{edges[i + 1]:.3g}: {n:,}</title></rect>"
        for i, n in enumerate(counts)
        if n
    ]
    parts.append(f'<line class="grid" x1="0" x2="{width}" y1="{floor}" y2="{floor}"/>')
    parts.append(f'<text class="low" x="0" y="{height - 4}">{edges[0]:.3g}</text>')
    parts.append(f'<text class="y" x="{width}" y="{height - 4}">{edges[-1]:.3g}</text>')
    drawn = _svg(parts, height, title, width)
    return (
        f"<figure><figcaption>{escape(title)}<small>{escape(note)}</small></figcaption>"
        f"{drawn}</figure>"
    )


def _svg(parts: Sequence[str], height: float, title: str, width: float = _WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _figure(title: str, lines: Sequence[Line], drawn: str) -> str:
    keys = "".join(
        f'<span><i style="background:{line.color}"></i>{escape(line.name)}</span>' for line in lines
    )
    legend = f'<span class="legend">{keys}</span>' if len(lines) > 1 else ""
    return f"<figure><figcaption>{escape(title)}{legend}</figcaption>{drawn}</figure>"
