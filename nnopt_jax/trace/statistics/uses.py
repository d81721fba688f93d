"""Which steps of a program use each leaf, and how: an abstract run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.base import is_node, show
from nnopt_jax.columns import aligned
from nnopt_jax.trace.jaxpr import Equation, line
from nnopt_jax.trace.statistics.layout import Layout
from nnopt_jax.trace.statistics.meeting import Factors, Meeting
from nnopt_jax.trace.statistics.mesh import mesh_of, replicating
from nnopt_jax.trace.statistics.statistics import Statistic
from nnopt_jax.trace.statistics.view import Level, Place, View, own_dims
from nnopt_jax.trace.statistics.walk import Extras, walk
from nnopt_jax.trace.traced import Traced, is_array
from nnopt_jax.tree.paths import flatten
from nnopt_jax.typing import Array


class LeafUse(NamedTuple):
    """One use of a leaf.

    Axes are those of the leaf itself, however it was moved on the way.

    Args:
        path: the leaf.
        number: of the use, in the order of the program.
        primitive: the step.
        along: axes that are summed over or, in a lookup, looked up: as a product with a one-hot
            row would sum over them.
        stack: axes along which each entry has a use of its own: layers of a scan, heads, experts.
        part: axes of which the use sees a part only.
        reason: why nothing can be measured there; empty where it can.
        line: the user's line, where it is known.

    Example:
        >>> from nnopt_jax.trace import LeafUse
        >>> LeafUse("w", 0, "dot_general", (0,), (), (), "", "").along
        (0,)
    """

    path: str
    number: int
    primitive: str
    along: tuple[int, ...]
    stack: tuple[int, ...]
    part: tuple[int, ...]
    reason: str
    line: str


@dataclasses.dataclass(frozen=True)
class LeafUses(Sequence[LeafUse]):
    """All uses of leaves; a sequence, and printed a table.

    Args:
        uses: in the order of the leaves, and then of the program.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
        >>> apply = lambda p, x: x @ p["w"].T.T + p["b"]
        >>> found = nnopt.graph(apply, params, jnp.ones(2)).uses
        >>> found.of("w")[0].along, len(found)
        ((0,), 2)
    """

    uses: tuple[LeafUse, ...]

    def __getitem__(self, at: Any) -> Any:
        """By position."""
        return self.uses[at]

    def __len__(self) -> int:
        """How many."""
        return len(self.uses)

    def __iter__(self) -> Iterator[LeafUse]:
        """One by one."""
        return iter(self.uses)

    def of(self, path: str) -> tuple[LeafUse, ...]:
        """Those of one leaf."""
        return tuple(use for use in self.uses if use.path == path)

    def __str__(self) -> str:
        """The table."""
        cells = [("leaf", "use", "meets", "along", "stack", "part", "why not", "line")]
        for use in self.uses:
            along, stack, part = (_axes(which) for which in (use.along, use.stack, use.part))
            cells.append(
                (use.path, str(use.number), use.primitive, along, stack, part, use.reason, use.line)
            )
        return "\n".join(aligned(cells))


def _axes(axes: tuple[int, ...]) -> str:
    return ",".join(map(str, axes)) or "-"


@dataclasses.dataclass(frozen=True)
class Site:
    """A use, and what is known of the states that are kept for it.

    Args:
        use: for the table; its number is set at the end.
        levels: of the scans over the leaf.
        layout: of its states.
        rule: place of the outermost call with a derivative rule around it, if any.
        states: of each statistic the shapes of what one meeting shows, stacks of scans not among
            them.
    """

    use: LeafUse
    levels: tuple[Level, ...]
    layout: Layout
    rule: Place
    states: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, int]:
        """How results name it."""
        return self.use.path, self.use.number

    @property
    def turned(self) -> tuple[int, ...]:
        """Axes of its states that run backwards: those of scans over what was reversed."""
        scanned = [level.dim for level in self.levels if level.dim]
        return tuple(at for at, dim in enumerate(scanned) if all(factor.back for factor in dim))

    def lengths(self, depth: int) -> tuple[int, ...]:
        """Of the scans over the leaf that lie deeper than a place."""
        return tuple(_size(level.dim) for level in self.levels if level.depth > depth and level.dim)


def _size(factors: Factors) -> int:
    return math.prod(factor.size for factor in factors)


@dataclasses.dataclass
class Notes:
    """Takes note of uses, in an abstract run.

    Args:
        shapes: of the leaves, by path.
        statistics: those whose states are wanted.
    """

    shapes: Mapping[str, tuple[int, ...]]
    statistics: Sequence[Statistic]
    sites: dict[Place, Site] = dataclasses.field(default_factory=dict)

    def met(
        self, view: View, equation: Equation, place: Place, rule: Place, what: Meeting | str
    ) -> Extras:
        """Notes one use; a program inside of a scan may be run more than once."""
        said = isinstance(what, str)
        met = Meeting(()) if said else what
        layout = _layout(self.shapes[view.path], view, met)
        stack = tuple(sorted({factor.axis for factor in layout.stack}))
        use = LeafUse(
            view.path, 0, equation.primitive.name, met.along, stack, _part(view, layout.shape),
            what if said else "", line(equation),
        )  # fmt: skip
        states = {} if said else {one.name: _state(one, met) for one in self.statistics}
        states = {name: state for name, state in states.items() if state is not None}
        self.sites[place] = Site(use, view.levels, layout, rule, states)
        return {}

    def nothing(self, place: Place) -> Extras:
        """Nothing is gathered."""
        return {}

    def merge(self, one: Extras, other: Extras) -> Extras:
        """Nothing is gathered."""
        return {}

    def split(self, extras: Extras, depth: int) -> tuple[Extras, Extras]:
        """Nothing is gathered."""
        return {}, {}

    def numbered(self) -> dict[Place, Site]:
        """The sites in the order of the program, with their numbers."""
        counts: dict[str, int] = {}
        found = {}
        for place in sorted(self.sites):
            site = self.sites[place]
            number = counts.get(site.use.path, 0)
            counts[site.use.path] = number + 1
            found[place] = dataclasses.replace(site, use=site.use._replace(number=number))
        return found


def _state(statistic: Statistic, met: Meeting) -> Any:
    return jax.eval_shape(lambda: statistic.show(met))


def _layout(shape: tuple[int, ...], view: View, met: Meeting) -> Layout:
    scanned = [level.dim for level in view.levels if level.dim]
    factors = [factor for dim in (*scanned, *view.dims) for factor in dim]
    for group in met.groups:
        (whole,) = (f for f in factors if (f.axis, f.stride * f.size) == _end(group))
        factors.remove(whole)
        factors += [group, whole._replace(size=whole.size // group.size)]
    return Layout(
        shape,
        tuple(factors),
        (*(factor for dim in scanned for factor in dim), *met.stack),
        len(scanned) + len(met.stack),
        met.along,
        met.groups,
        met.channels,
        met.outs,
    )


def _end(factor: Any) -> tuple[int, int]:
    return factor.axis, factor.stride * factor.size


def _part(view: View, shape: tuple[int, ...]) -> tuple[int, ...]:
    dims = (*(level.dim for level in view.levels), *view.dims)
    seen = [_size(tuple(f for dim in dims for f in dim if f.axis == i)) for i in range(len(shape))]
    return tuple(i for i, (n, size) in enumerate(zip(seen, shape, strict=True)) if n != size)


def viewed(values: Sequence[Any], names: Sequence[str | None]) -> list[Any]:
    """What goes into a program: leaves that have a name are followed, all else is arrays."""
    arrays = [show(value) for value in values]
    return [
        x if name is None else View(x, {}, name, own_dims(x.shape), number=number)
        for number, (x, name) in enumerate(zip(arrays, names, strict=True))
    ]


def uses_of(given: Traced, params: Any) -> LeafUses:
    """Find which steps of a function use each of its float parameters; nothing is computed.

    Args:
        given: the function.
        params: its parameters, shapes in place of arrays.
    """
    notes: list[Notes] = []

    def run(*values: Any) -> Array:
        notes.append(noted(dataclasses.replace(given, values=values), floats(params), ()))
        return jnp.zeros(())

    jax.eval_shape(replicating(run, mesh_of(given.values), 0), *given.values)
    return table(notes[-1].numbered(), list(floats(params)))


def noted(given: Traced, chosen: Mapping[str, Any], statistics: Sequence[Statistic]) -> Notes:
    """The abstract run of what was traced."""
    notes = Notes({path: tuple(leaf.shape) for path, leaf in chosen.items()}, statistics)
    walk(given.program, viewed(given.values, names_of(given, chosen)), notes)
    return notes


def names_of(given: Traced, chosen: Mapping[str, Any]) -> list[str | None]:
    """For each input its path, where it is one of the parameters that were chosen."""
    if "" in chosen:  # the parameters are one array
        return ["" if which == 0 else None for which in given.arguments]
    return [
        path if which == 0 and path in chosen else None
        for path, which in zip(given.paths, given.arguments, strict=True)
    ]


def floats(params: Any) -> dict[str, Any]:
    """The float leaves of a tree, by path."""
    return {
        path: leaf
        for path, leaf in flatten(params, is_node).items()
        if (is_node(leaf) or is_array(leaf)) and jnp.issubdtype(leaf.dtype, jnp.floating)
    }


def table(sites: Mapping[Place, Site], paths: Sequence[str]) -> LeafUses:
    """The uses, leaf by leaf."""
    order = {path: at for at, path in enumerate(paths)}
    found = [site.use for site in sites.values()]
    return LeafUses(tuple(sorted(found, key=lambda use: (order[use.path], use.number))))
