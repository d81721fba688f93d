"""The binding of a transform to a model: the axes of weights, and the default selection."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import jax

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.columns import Tabular, aligned, counted, listed
from nnopt_jax.errors import CompositionError, Problems, SelectionError, ShapeError, nearest
from nnopt_jax.ops.axis_roles import Axes, assumed_axes
from nnopt_jax.tree.paths import flatten
from nnopt_jax.tree.select import Selector, Where, selector

Misfit: TypeAlias = Literal["raise", "skip"]
"""Whether to raise for leaves that a method's groups or patterns do not fit, or to skip them."""

Rules = tuple[tuple[str, Axes], ...]
"""Pairs of a rule that selects leaves and their axes, in the order given."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AxesTable(Tabular, Mapping[str, Axes]):
    """The axes of each leaf, and the weights selected by default: `nnopt.graph(...).axes`.

    Args:
        found: by path the axes of each leaf that a product or a lookup uses. For a leaf that is
            looked up and multiplied (a tied embedding), the axes of its product.
        uses: by path the axes of every use, in the order of the program.
        left_out: weights that methods leave out by default, and why: embeddings that are only
            looked up, and the last product before the output.
        unknown: leaves without known axes, and why.

    Example:
        >>> from nnopt_jax.transform.binding import AxesTable
        >>> print(AxesTable({"fc/kernel": Axes(0, 1)}, {}, {}, {"fc/bias": "is added"}))
        leaf       contracted  output  batch  by default
        fc/kernel  0           1       -      taken
        fc/bias    -           -       -      left alone: is added
    """

    found: Mapping[str, Axes]
    uses: Mapping[str, tuple[Axes, ...]]
    left_out: Mapping[str, str]
    unknown: Mapping[str, str]

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        leaves = counted(len(self.found) + len(self.unknown), "leaf", "leaves")
        return f"{counted(len(self.weights), 'weight')} of {leaves}, {len(self.unknown)} unknown"

    @property
    def weights(self) -> tuple[str, ...]:
        """The leaves that methods select by default: weights of products and convolutions."""
        return tuple(path for path in self.found if path not in self.left_out)

    def __getitem__(self, path: str) -> Axes:
        """Return the axes of a leaf."""
        return self.found[path]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the paths of the leaves that have axes."""
        return iter(self.found)

    def __len__(self) -> int:
        """Return the number of leaves that have axes."""
        return len(self.found)

    def __str__(self) -> str:
        """Return the table as text."""
        cells: list[tuple[str, ...]] = [("leaf", "contracted", "output", "batch", "by default")]
        for path, axes in self.found.items():
            roles = [listed(role) for role in (axes.contracted, axes.output, axes.batch)]
            why = self.left_out.get(path)
            cells.append((path, *roles, "taken" if why is None else f"left out: {why}"))
        for path, why in self.unknown.items():
            cells.append((path, "-", "-", "-", f"left alone: {why}"))
        return "\n".join(aligned(cells))


class ModelGraph(Protocol):
    """The interface of a graph that `Transform.bind` requires; `nnopt.graph` returns one."""

    @property
    def params(self) -> Any:
        """The parameters as `jax.ShapeDtypeStruct`s."""
        ...

    @property
    def axes(self) -> Any:  # an AxesTable, which graphs compute once
        """The axes of each weight."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Binding:
    """The axes of a model's weights, and the weights that a method selects by default.

    Args:
        axes: the axes in the graph, by path.
        rules: the user's axes by rule; they override those of the graph.
        weights: the leaves taken by default; None for all leaves of two axes or more.
        left_out: weights that are skipped by default, with reasons.
        unknown: leaves without known axes, and why.
        misfit: whether to raise for leaves that groups or patterns do not fit, or to skip them.
        graph: the graph that it was made from, or None.
        partial: whether the transform gets only some leaves of the model, as under `at`.

    Example:
        >>> from nnopt_jax.ops.axis_roles import Axes
        >>> from nnopt_jax.transform.binding import Binding
        >>> Binding(rules=(("**/kernel", Axes(1, 0)),)).of("fc/kernel", (4, 8))
        Axes(1, 0)
    """

    axes: Mapping[str, Axes] = dataclasses.field(default_factory=dict)
    rules: Rules = ()
    weights: frozenset[str] | None = None
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unknown: Mapping[str, str] = dataclasses.field(default_factory=dict)
    misfit: Misfit = "raise"
    graph: ModelGraph | None = None
    partial: bool = False

    @property
    def is_bound(self) -> bool:
        """Whether axes come from a graph or from the user."""
        return self.graph is not None or bool(self.rules)

    def of(self, path: str, shape: tuple[int, ...]) -> Axes | None:
        """Return the axes of a leaf; None if they are not known.

        Args:
            path: the path of the leaf.
            shape: the shape of the leaf.
        """
        for _, axes in self.rules_of(path)[:1]:
            return axes.normalized(len(shape))
        if self.graph is not None:
            return self.axes.get(path)
        return assumed_axes(shape)

    def rules_of(self, path: str) -> Rules:
        """Return the user's rules that select a leaf, by precedence; the first one sets its axes.

        A path takes precedence over patterns, and a later pattern over earlier ones, so that
        exceptions to a pattern may follow it.
        """
        found = [pair for pair in self.rules if selector(pair[0])(path, None)]
        return tuple(sorted(reversed(found), key=lambda pair: pair[0] != path))

    def is_assumed(self, path: str) -> bool:
        """Return whether the axes of a leaf are assumed rather than set by a graph or the user."""
        return self.graph is None and not self.rules_of(path)

    def why_unknown(self, path: str, shape: tuple[int, ...]) -> str:
        """Return why the axes of a leaf are unknown, and the call that sets them."""
        axes = f"axes={{{path!r}: nnopt.Axes(in_axis=..., out_axis=...)}})"
        ways = f"tx.bind({axes}"
        if self.graph is not None:
            reason = self.unknown.get(path, "the graph has no such leaf")
            return f"has no known axes: {reason}; give tx.bind(graph, {axes}"
        return (
            f"has shape {tuple(shape)}, and which of its axes a product sums over is not known; "
            f"give tx.bind(nnopt.graph(apply, params, *inputs)) or {ways}"
        )

    @property
    def default_where(self) -> Selector:
        """The rule that selects the default weights."""
        weights = self.weights or frozenset()
        text = "the weights of products and convolutions but the last"
        return Selector(text, lambda path, leaf: path in weights)

    def including(self, where: Where, leaves: Mapping[str, Any]) -> Binding:
        """Return a binding whose default weights include the left-out weights that a rule selects.

        Args:
            where: the rule.
            leaves: the parameters by path.
        """
        if self.weights is None or not self.left_out:
            return self
        named = {
            path for path in self.left_out if path in leaves and selector(where)(path, leaves[path])
        }
        left = {path: why for path, why in self.left_out.items() if path not in named}
        return dataclasses.replace(self, weights=self.weights | named, left_out=left)


UNBOUND = Binding()
"""The binding of a transform without a model: axes follow conventions."""


def binding_of(
    who: str, graph: ModelGraph | None, axes: Mapping[str, Axes] | None, misfit: Misfit
) -> Binding:
    """Make a binding from a graph, from a user's axes, or from both.

    Args:
        who: the transform, for errors.
        graph: the result of `nnopt.graph`, or None.
        axes: the user's axes by rule, see `nnopt_jax.tree.selector`.
        misfit: see `Binding`.

    Raises:
        CompositionError: `graph` is not a graph.
        SelectionError: a rule selects no leaf of the graph.
        ShapeError: axes do not fit a leaf, or contradict the graph; the message lists all.
    """
    rules = tuple((axes or {}).items())
    if graph is None:
        return Binding(rules=rules, misfit=misfit)
    if not (hasattr(graph, "params") and hasattr(graph, "axes")):
        raise CompositionError(
            f"{who}.bind: a {type(graph).__name__} is not a graph; give nnopt.graph(apply, params, "
            "*inputs)."
        )
    table, torn = graph.axes, _disagreeing(graph.axes)
    unknown = {**torn, **table.unknown}
    # Products use these leaves, too, but with roles that disagree.
    in_products = {
        path: why
        for path, why in unknown.items()
        if any(not axes.lookup for axes in table.uses.get(path, ()))
    }
    found = Binding(
        {path: axes for path, axes in table.items() if path not in torn},
        rules,
        frozenset(table.weights),
        {**in_products, **table.left_out},
        unknown,
        misfit,
        graph,
    )
    _check_rules(f"{who}.bind", flatten(graph.params, is_node), found)
    return found


def _disagreeing(table: AxesTable) -> dict[str, str]:
    """Return an error text for each leaf that products use with different axes; ignore lookups."""
    found = {}
    for path, uses in table.uses.items():
        products = list(dict.fromkeys(axes for axes in uses if not axes.lookup))
        if any(not _agree(axes, products[0]) for axes in products):
            found[path] = f"its uses disagree: {_listed(products)}"
    return found


def _listed(uses: Sequence[Axes]) -> str:
    return " and ".join(map(repr, uses))


def check_parameters(who: str, leaves: Mapping[str, Any], binding: Binding) -> None:
    """Raise if parameters differ from those of the model that a transform is bound to.

    Args:
        who: the transform, for errors.
        leaves: the parameters by path.
        binding: the binding of the transform.

    Raises:
        SelectionError: a rule of axes selects no leaf, or the graph has other leaves.
        ShapeError: axes do not fit a leaf, or the graph has other shapes; the message lists all.
    """
    if binding.graph is not None:
        _check_same(who, leaves, binding.graph.params, partial=binding.partial)
        return  # rules were checked against the graph
    _check_rules(who, leaves, binding)


def _check_same(who: str, leaves: Mapping[str, Any], params: Any, *, partial: bool) -> None:
    """Raise if paths or shapes of leaves differ from those of the graph."""
    lost, wrong = Problems(who), Problems(who)
    known = {p: tuple(x.shape) for p, x in flatten(params, is_node).items() if hasattr(x, "shape")}
    # Inside of `jax.shard_map`, a leaf is only the shard of one device.
    is_local = bool(jax.sharding.get_abstract_mesh().manual_axes)
    for path, leaf in leaves.items():
        if not hasattr(leaf, "shape"):
            continue
        shape = tuple(leaf.shape)
        if path not in known:
            lost.add(path, f"is not among the parameters of the graph.{nearest(path, known)}")
        elif shape != known[path] and not (is_local and len(shape) == len(known[path])):
            wrong.add(path, f"has shape {shape}, and {known[path]} in the graph")
    for path in known if not partial else ():
        if path not in leaves:
            lost.add(path, "is in the graph, and not among the parameters")
    advice = "bind to the graph of these parameters: tx.bind(nnopt.graph(apply, params, *inputs))"
    for problems in (lost, wrong):
        if problems:
            problems.add("", advice)
    lost.raise_as(SelectionError)
    wrong.raise_as(ShapeError)


def _check_rules(who: str, leaves: Mapping[str, Any], binding: Binding) -> None:
    """Raise if a rule for axes selects no leaf, does not fit a leaf, or contradicts the graph."""
    lost, wrong = Problems(who), Problems(who)
    for rule, axes in binding.rules:
        named = selector(rule)
        paths = [path for path, leaf in leaves.items() if named(path, leaf)]
        if not paths and not binding.partial:
            lost.add("", f"axes={{{rule!r}: ...}} selects no leaf.{nearest(str(rule), leaves)}")
        for path in (x for x in paths if binding.rules_of(x)[0][0] is rule):
            shape = getattr(leaves[path], "shape", None)
            if shape is not None and (text := _contradiction(binding, path, axes, tuple(shape))):
                wrong.add(path, text)
    lost.raise_as(SelectionError)
    wrong.raise_as(ShapeError)


def _contradiction(binding: Binding, path: str, axes: Axes, shape: tuple[int, ...]) -> str | None:
    """Return why a user's axes cannot be those of a leaf, from its shape and the graph."""
    if text := axes.misfit(shape):
        return f"{text}; name every axis once"
    ours, known = axes.normalized(len(shape)), binding.axes.get(path)
    if path in binding.unknown and binding.graph is not None:
        uses = binding.graph.axes.uses.get(path, ())
        if uses and not any(_agree(ours, one) for one in uses):
            return f"axes={axes} are those of no use: {_listed(uses)}"
    elif known is not None and not _agree(ours, known):
        return (
            f"axes={axes} contradicts the graph, where it has {known}; leave it out, or bind "
            "without the graph"
        )
    return None


def _agree(ours: Axes, graphs: Axes) -> bool:
    """Return whether two `Axes` assign the same roles; for a lookup, any roles are accepted."""
    if graphs.lookup:
        return True
    return all(
        sorted(getattr(ours, role)) == sorted(getattr(graphs, role))
        for role in ("contracted", "output", "batch")
    )


Build = Callable[[Binding], Any]
"""`build(binding)` returns the transform for the weights of one model."""
