"""What was measured, by leaf and by use."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.columns import aligned
from nnopt_jax.trace.statistics.layout import Layout, folded
from nnopt_jax.trace.statistics.reading import BATCHES, WHOLE, Reading, Totals
from nnopt_jax.trace.statistics.statistics import Statistic
from nnopt_jax.trace.statistics.uses import LeafUses, Site, table
from nnopt_jax.trace.statistics.view import Factor

Key = tuple[str, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Observed(Mapping[str, dict[str, Any]]):
    """What `graph.observe` measured: a mapping from statistic to path to what was seen.

    All uses of a leaf are joined, as if one had seen all; where they have different layers, these
    are joined too. Leaves that a statistic could not be measured of are not in it, but in
    `lacking`.

    Args:
        found: by statistic and path.
        by_use: by statistic, and then by path and number of the use.
        rows: by path, how many rows met the leaf.
        uses: the table of uses.
        lacking: by statistic and path, why there is nothing.
        batches: how many there were.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
        >>> apply = lambda p, x: x @ p["w"] + p["b"][None]
        >>> seen = nnopt.graph(apply, params, jnp.ones((4, 2))).observe(params, [jnp.ones((4, 2))])
        >>> seen.lacking["input_absmax"], seen.by_use["input_absmax"][("w", 0)]
        ({'b': 'add sums over none of it'}, Array(1., dtype=float32))
        >>> print(seen)
        leaf  rows  uses         input_absmax
        b     -     add          add sums over none of it
        w     4     dot_general  1
    """

    found: Mapping[str, dict[str, Any]]
    by_use: Mapping[str, dict[Key, Any]]
    rows: Mapping[str, Any]
    uses: LeafUses
    lacking: Mapping[str, dict[str, str]]
    batches: int

    def __getitem__(self, name: str) -> dict[str, Any]:
        """What was seen, by path."""
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        """The statistics."""
        return iter(self.found)

    def __len__(self) -> int:
        """How many statistics there are."""
        return len(self.found)

    def __str__(self) -> str:
        """A table of leaves."""
        cells = [("leaf", "rows", "uses", *self.found)]
        paths = dict.fromkeys((*self.rows, *(p for each in self.lacking.values() for p in each)))
        for path in sorted(paths):
            uses = ", ".join(dict.fromkeys(use.primitive for use in self.uses.of(path))) or "-"
            shown = (
                _short(found[path]) if path in found else self.lacking[name].get(path, "-")
                for name, found in self.found.items()
            )  # fmt: skip
            cells.append(
                (path, _short(self.rows[path]) if path in self.rows else "-", uses, *shown)
            )
        return "\n".join(aligned(cells))


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return type(value).__name__
    if value.size == 1:
        return f"{value.item():.4g}"
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"


def observed(reading: Reading, totals: Totals) -> Observed:
    """Says what totals say."""
    lacking: dict[str, dict[str, str]] = {}

    def finish(totals: Totals) -> Any:
        found: dict[str, dict[str, Any]] = {}
        by_use: dict[str, dict[Key, Any]] = {}
        for name, statistic in reading.gauges.statistics.items():
            by_use[name], found[name], lacking[name] = _finished(reading, statistic, totals)
        for name in reading.slopes:
            by_use[name], found[name] = _slopes(name, reading.shapes, totals)
            lacking[name] = {}
        return by_use, found

    by_use, found = jax.jit(finish)(totals)
    rows = found.pop("rows")
    del by_use["rows"], lacking["rows"]
    _drop_unmet(reading, found, lacking, rows)
    uses = table(reading.gauges.sites, list(reading.shapes))
    return Observed(found, by_use, rows, uses, lacking, int(totals[BATCHES]))


def _finished(
    reading: Reading, statistic: Statistic, totals: Totals
) -> tuple[dict[Key, Any], dict[str, Any], dict[str, str]]:
    """By use, by leaf, and why some leaves have nothing."""
    sites = {site.key: site for site in reading.gauges.sites.values()}
    states = {
        key: _forwards(totals[statistic.name, *key], site)
        for key, site in sites.items()
        if (statistic.name, *key) in totals
    }
    by_use = {key: statistic.finish(x, sites[key].layout) for key, x in states.items()}
    found, lacking = {}, {}
    for path in reading.shapes:
        mine = [(sites[key].layout, x) for key, x in states.items() if key[0] == path]
        one = _joined(statistic, mine) if mine else _why_not(reading, path)
        (lacking if isinstance(one, str) else found)[path] = one
    return by_use, found, lacking


def _forwards(state: Any, site: Site) -> Any:
    turned = site.turned
    return jax.tree.map(lambda x: jnp.flip(x, turned), state) if turned else state


def _why_not(reading: Reading, path: str) -> str:
    """Of a leaf that no use has anything to measure of."""
    uses = [site.use for site in reading.gauges.sites.values() if site.use.path == path]
    looked_up = [f"{use.primitive} looks rows up" for use in uses if not use.reason]
    reasons = [use.reason for use in uses if use.reason]
    return "; ".join(dict.fromkeys((*looked_up, *reasons))) or "no step uses it"


def _drop_unmet(reading: Reading, found: Any, lacking: Any, rows: Any) -> None:
    """What no batch has reached is not known, though its state looks like something."""
    for name in reading.gauges.statistics.keys() & found:
        for path in [path for path in found[name] if not np.asarray(rows[path]).any()]:
            del found[name][path]
            lacking[name][path] = "no batch has reached it"


def _joined(statistic: Statistic, mine: Sequence[tuple[Layout, Any]]) -> Any:
    """All uses of a leaf as one, or why that cannot be."""
    if len({_marks(layout, ("stack",)) for layout, _ in mine}) > 1:
        mine = [(layout.folded(), folded(x, layout.axes, statistic.add)) for layout, x in mine]
    if len({_marks(layout, statistic.labels) for layout, _ in mine}) > 1:
        along = " and ".join(sorted({str(layout.along) for layout, _ in mine}))
        return f"its uses are of different channels (along {along}): see by_use"
    return statistic.finish(functools.reduce(statistic.add, [x for _, x in mine]), mine[0][0])


def _marks(layout: Layout, labels: Sequence[str]) -> Any:
    """Parts of a layout, whichever way they run."""
    return tuple(
        tuple(x._replace(back=False) if isinstance(x, Factor) else x for x in getattr(layout, name))
        for name in labels
    )


def _slopes(
    name: str, leaves: Mapping[str, Any], totals: Totals
) -> tuple[dict[Key, Any], dict[str, Any]]:
    """Means over batches, by use and by leaf."""
    count = totals[BATCHES].astype(jnp.float32)
    means = {key[1:]: x / count for key, x in totals.items() if key[0] == name}
    by_use = {key: x for key, x in means.items() if key[1] != WHOLE}
    if name == "fisher":
        return by_use, {path: means[path, WHOLE] for path in leaves}
    found = {path: jnp.zeros(leaf.shape) for path, leaf in leaves.items()}  # of unused ones
    for (path, _), mean in by_use.items():
        found[path] = found[path] + mean
    return by_use, found
