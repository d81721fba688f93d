"""The result of `graph.observe`: measured statistics by leaf and by use."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from nnopt_jax.columns import Tabular, aligned, counted
from nnopt_jax.trace.jaxpr import is_variable
from nnopt_jax.trace.statistics.leaf_domain import output_numbers
from nnopt_jax.trace.statistics.measured_run import BATCHES, WHOLE, ObservedProgram, Totals
from nnopt_jax.trace.statistics.statistic import LeafLayout, Statistic, fold
from nnopt_jax.trace.statistics.use_sites import Key, LeafUses, leaf_uses


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Observed(Tabular, Mapping[str, dict[str, Any]]):
    """Measured statistics, a mapping from the name of a statistic to results by path.

    The uses of a leaf are merged as if they were one; uses of different layers are merged as well.
    A leaf whose statistic could not be measured is listed in `lacking` instead. Leaves that are
    multiplied by the same input share their arrays. The result is a pytree, so jitted functions can
    take it as an argument.

    Args:
        found: the results by statistic and path.
        by_use: the results by statistic, and then by path and number of the use; statistics of a
            leaf as a whole have no entry.
        rows: the number of rows of inputs of each leaf, by path.
        uses: the table of uses.
        lacking: the reasons for missing results, by statistic and path.
        batches: the number of batches.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
        >>> apply = lambda p, x: x @ p["w"] + p["b"][None]
        >>> seen = nnopt.graph(apply, params, jnp.ones((4, 2))).observe(params, [jnp.ones((4, 2))])
        >>> seen.lacking["input_absmax"], seen.by_use["input_absmax"][("w", 0)]
        ({'b': 'add does not sum over it'}, Array(1., dtype=float32))
        >>> print(seen)
        leaf  rows  uses         input_absmax
        b     -     add          add does not sum over it
        w     4     dot_general  1
    """

    found: Mapping[str, dict[str, Any]]
    by_use: Mapping[str, dict[Key, Any]]
    rows: Mapping[str, Any]
    uses: LeafUses
    lacking: Mapping[str, dict[str, str]]
    batches: int

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        batches = counted(self.batches, "batch", "batches")
        return f"{batches}, {counted(len(self.rows), 'leaf', 'leaves')}: {', '.join(self.found)}"

    def __getitem__(self, name: str) -> dict[str, Any]:
        """Return the results of a statistic by path."""
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the statistics."""
        return iter(self.found)

    def __len__(self) -> int:
        """Return the number of statistics."""
        return len(self.found)

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the measured arrays, and the static fields."""
        lacking = tuple((name, tuple(why.items())) for name, why in self.lacking.items())
        return (self.found, self.by_use, self.rows), (self.uses, lacking, self.batches)

    @classmethod
    def tree_unflatten(cls, known: tuple[Any, ...], arrays: Sequence[Any]) -> Observed:
        """Restore the result from the parts that `tree_flatten` returns."""
        (found, by_use, rows), (uses, lacking, batches) = arrays, known
        return cls(found, by_use, rows, uses, {name: dict(why) for name, why in lacking}, batches)

    def __str__(self) -> str:
        """Return a table with a row for each leaf."""
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


def collect_results(analyzed: ObservedProgram, totals: Totals) -> Observed:
    """Convert the totals of all batches to results by leaf and by use.

    Args:
        analyzed: the program for the first batch.
        totals: the totals of all batches.
    """
    lacking: dict[str, dict[str, str]] = {}

    def finish(totals: Totals) -> Any:
        found: dict[str, dict[str, Any]] = {}
        by_use: dict[str, dict[Key, Any]] = {}
        for name, statistic in analyzed.measures.statistics.items():
            by_use[name], found[name], lacking[name] = _results_of(analyzed, statistic, totals)
        for name in analyzed.of_loss:
            by_use[name], found[name] = _loss_means(name, analyzed.shapes, totals)
            lacking[name] = {}
        return by_use, found

    # Compiled once for all statistics; uses that share a state share the result.
    by_use, found = compute_shared(finish, totals)
    rows = found.pop("rows")
    del by_use["rows"], lacking["rows"]
    _drop_unreached(analyzed, found, lacking, rows)
    uses = [site.use for site in analyzed.measures.sites.values()]
    table = leaf_uses(uses, list(analyzed.shapes))
    return Observed(found, by_use, rows, table, lacking, int(totals[BATCHES]))


def compute_shared(function: Callable[[Any], Any], given: Any) -> Any:
    """Call a function so that outputs computed alike share one array, and inputs are not copied.

    Args:
        function: a function of one pytree.
        given: the pytree.
    """
    leaves, tree = jax.tree.flatten(given)
    program, shapes = jax.make_jaxpr(
        lambda *x: function(jax.tree.unflatten(tree, x)), return_shape=True
    )(*leaves)
    numbers, outputs = output_numbers(program), program.jaxpr.outvars
    inputs = dict(zip(program.jaxpr.invars, leaves, strict=True))
    found = {
        number: inputs[x]
        for number, x in zip(numbers, outputs, strict=True)
        if is_variable(x) and x in inputs
    }
    # Outputs that are inputs are not computed, and equal outputs are computed once.
    left = {number: at for at, number in enumerate(numbers) if number not in found}
    run = core.jaxpr_as_fun(program)

    def unequal(*x: Any) -> list[Any]:
        outs = run(*x)
        return [outs[at] for at in left.values()]

    if left:
        found |= dict(zip(left, jax.jit(unequal)(*leaves), strict=True))
    return jax.tree.unflatten(jax.tree.structure(shapes), [found[n] for n in numbers])


def _results_of(
    analyzed: ObservedProgram, statistic: Statistic, totals: Totals
) -> tuple[dict[Key, Any], dict[str, Any], dict[str, str]]:
    """Return the results by use and by leaf, and the reasons for leaves without a result."""
    sites = {site.key: site for site in analyzed.measures.sites.values()}
    states = {
        key: site.layout.split_scans(totals[statistic.name, *site.owners[statistic.name]])
        for key, site in sites.items()
        if statistic.name in site.owners
    }
    by_use = {key: statistic.finish(sites[key].layout, x) for key, x in states.items()}
    found, lacking = {}, {}
    for path in analyzed.shapes:
        mine = [key for key in states if key[0] == path]
        uses = [(sites[key].layout, states[key]) for key in mine]
        one = by_use[mine[0]] if len(mine) == 1 else _merge_uses(statistic, uses) if mine else (
            _why_not(analyzed, statistic, path)
        )  # fmt: skip
        (lacking if isinstance(one, str) else found)[path] = one
    return by_use, found, lacking


def _why_not(analyzed: ObservedProgram, statistic: Statistic, path: str) -> str:
    """Return why the uses of a leaf could not be measured."""
    sites = [site for site in analyzed.measures.sites.values() if site.use.path == path]
    uses = [site.noted for site in sites]
    lookups = [f"{use.equation.primitive.name} looks rows up" for use in uses if use.product.lookup]
    reasons = [use.reason or use.product.no_outputs for use in uses if not use.product.lookup]
    known = "; ".join(filter(None, dict.fromkeys((*lookups, *reasons))))
    products = ", ".join(dict.fromkeys(use.equation.primitive.name for use in uses))
    return known or (f"{products} looks nothing up" if products else "no step uses it")


def _drop_unreached(analyzed: ObservedProgram, found: Any, lacking: Any, rows: Any) -> None:
    """Drop the results of leaves that no batch has used, which are only initial states."""
    for name in analyzed.measures.statistics.keys() & found:
        for path in [path for path in found[name] if not np.asarray(rows[path]).any()]:
            del found[name][path]
            lacking[name][path] = "no batch has reached it"


def _merge_uses(statistic: Statistic, mine: Sequence[tuple[LeafLayout, Any]]) -> Any:
    """Merge the uses of a leaf, or return why that is impossible."""
    if len({layout.sum_key(("batch",)) for layout, _ in mine}) > 1:
        mine = [(layout.folded(), fold(x, len(layout.batch), statistic.add)) for layout, x in mine]
    if len({layout.sum_key(statistic.labels) for layout, _ in mine}) > 1:
        axes = sorted({str(layout.product.contracted) for layout, _ in mine})
        if len(axes) == 1:
            return f"its uses are of different parts of axes {axes[0]}: see by_use"
        return f"its uses are of different channels (along {' and '.join(axes)}): see by_use"
    return statistic.finish(mine[0][0], functools.reduce(statistic.add, [x for _, x in mine]))


def _loss_means(
    name: str, leaves: Mapping[str, Any], totals: Totals
) -> tuple[dict[Key, Any], dict[str, Any]]:
    """Return the means over batches of a statistic of the loss, by use and by leaf."""
    count = totals[BATCHES].astype(jnp.float32)
    means = {key[1:]: x / count for key, x in totals.items() if key[0] == name}
    by_use = {key: x for key, x in means.items() if key[1] != WHOLE}
    if name != "gradient":
        return by_use, {path: means[path, WHOLE] for path in leaves}
    found = {}
    for path, leaf in leaves.items():
        mine = [mean for key, mean in by_use.items() if key[0] == path]
        found[path] = functools.reduce(jnp.add, mine) if mine else jnp.zeros(leaf.shape)
    return by_use, found
