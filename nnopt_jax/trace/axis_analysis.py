"""The analysis of the contracted, output and batch axes of a model's weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from nnopt_jax.ops.axis_roles import Axes
from nnopt_jax.trace.abstract_walk import Domain, Location, Site, Walk
from nnopt_jax.trace.jaxpr import Equation, line
from nnopt_jax.trace.primitives import Dim, Kind, OpRule, Place, RuntimeStart, factors_of
from nnopt_jax.trace.traced import Traced
from nnopt_jax.transform.binding import AxesTable
from nnopt_jax.typing import Shape

CONTRACTED, OUTPUT, BATCH, LOOKUP = "contracted", "output", "batch", "lookup"

Parts = tuple[tuple[int, int], ...]
"""The leaf axes that an array axis consists of: (axis of the leaf, size), from major to minor."""


class LeafView(NamedTuple):
    """A leaf after it was moved, cast, sliced or combined with other parameters.

    Args:
        path: the path of the leaf.
        dims: for each axis of the array, the parts of the leaf's axes that it consists of.
        layers: axes of the leaf on which a scan or an index selected one entry.
        chosen: whether the inputs choose that entry, such as a row of an embedding or an expert.
    """

    path: str
    dims: tuple[Parts, ...]
    layers: tuple[int, ...] = ()
    chosen: bool = False


class AxisValue(NamedTuple):
    """The abstract value of an array: the leaves that it holds, and its dependence on inputs.

    Args:
        views: the leaves in the array: it consists of them, or inputs select its entries from them.
        varies: whether it depends on inputs other than the parameters.
        ends: location and path of the last products with a leaf before this array.
    """

    views: tuple[LeafView, ...] = ()
    varies: bool = False
    ends: frozenset[tuple[Location, str]] = frozenset()


@dataclasses.dataclass(frozen=True)
class AxisUse:
    """A step that uses a leaf, and the roles that the axes of the leaf have in it.

    Args:
        primitive: the name of the primitive.
        line: the user's line.
        roles: pairs of an axis of the leaf and its role in this use.
        reason: why the use has no axes, if that does not follow from the roles.
    """

    primitive: str
    line: str
    roles: frozenset[tuple[int, str]]
    reason: str = ""


@dataclasses.dataclass
class AxisRoles(Domain[AxisValue]):
    """The analysis that finds the roles of leaves' axes: contracted, output or batch.

    Args:
        uses: the uses by path and location, since bodies of loops are walked more than once.
        inner: location and path of products whose outcome reaches a later product with a leaf.
    """

    uses: dict[tuple[str, Location], AxisUse] = dataclasses.field(default_factory=dict)
    inner: set[tuple[Location, str]] = dataclasses.field(default_factory=set)

    def constant(self, x: Any) -> AxisValue:
        """Return the value of a constant, which does not depend on any leaf."""
        return AxisValue()

    def join(self, one: AxisValue, other: AxisValue) -> AxisValue:
        """Return the value of an array that is one of two arrays, with the leaves of both."""
        views = tuple(dict.fromkeys((*one.views, *other.views)))
        return AxisValue(views, one.varies or other.varies, one.ends | other.ends)

    def layer(self, value: AxisValue, site: Site) -> AxisValue:
        """Return the value of one slice of a scanned array; the scanned axis is a batch axis."""
        views = (
            v._replace(dims=v.dims[1:], layers=(*v.layers, *(axis for axis, _ in v.dims[0])))
            for v in value.views
        )
        return value._replace(views=tuple(views))

    def stack(self, value: AxisValue, times: int, site: Site) -> AxisValue:
        """Return the value of a loop's stacked outputs; the new axis belongs to no leaf."""
        return value._replace(views=tuple(v._replace(dims=((), *v.dims)) for v in value.views))

    def step(
        self, equation: Equation, rule: OpRule, values: list[AxisValue], site: Site
    ) -> Sequence[AxisValue]:
        """Record which leaves a step uses, and return the leaves that its outcomes hold."""
        values = [AxisValue() if value is None else value for value in values]
        # A varying predicate between two weights yields a weight, while a varying index yields
        # activations: only elementwise steps leave out their predicates here.
        deciding = rule.data if rule.kind is Kind.ELEMENTWISE else range(len(values))
        varies = any(values[i].varies for i in deciding)
        ends = frozenset[tuple[Location, str]]().union(*(values[i].ends for i in rule.data))
        products: set[tuple[Location, str]] = set()
        outs: list[list[LeafView]] = [[] for _ in rule.outcomes]
        for at in rule.data:
            for view in values[at].views:
                used, goes_on = _usage(rule, values, at, view, varies)
                if used:
                    self._note(equation, rule, at, view, site)
                if used and rule.kind is Kind.CONTRACTION:
                    products.add((site.location, view.path))
                for outcome, moved in enumerate(_move(rule, at, view) if goes_on else ()):
                    if moved is not None:
                        outs[outcome].append(moved._replace(chosen=varies))
        if products:
            # The outcomes of these earlier products reach another product with a leaf.
            self.inner |= ends
            ends = frozenset(products)
        return [AxisValue(tuple(dict.fromkeys(views)), varies, ends) for views in outs]

    def _note(self, equation: Equation, rule: OpRule, at: int, view: LeafView, site: Site) -> None:
        key, roles = (view.path, (*site.location, at)), {(axis, BATCH) for axis in view.layers}
        if rule.kind in (Kind.CONTRACTION, Kind.LOOKUP, Kind.MOVEMENT):
            roles |= {*_roles(rule, at, view)}
        # A later walk of a loop adds roles to those of an earlier one.
        if key in self.uses:
            roles |= self.uses[key].roles
        where = next(filter(None, map(line, reversed(site.around))), "")
        name = equation.primitive.name
        reason = f"no rule follows it through {name}" if rule.kind is Kind.OPAQUE else ""
        self.uses[key] = AxisUse(name, where, frozenset(roles), reason)


def _usage(
    rule: OpRule, values: Sequence[AxisValue], at: int, view: LeafView, varies: bool
) -> tuple[bool, bool]:
    """Return whether a step uses a leaf, and whether its outcomes still hold the leaf."""
    hides = rule.kind in (Kind.CONTRACTION, Kind.OPAQUE)
    if view.chosen:
        other = any(values[i].varies for i in rule.data if i != at)
        roles = {role for _, role in _roles(rule, at, view)}
        # A row of an embedding is an input of the product; a matrix (an expert) is its weight.
        is_weight = rule.kind is Kind.CONTRACTION and {CONTRACTED, OUTPUT} <= roles
        return other and is_weight, not (hides or other)
    # A leaf combined with nothing but parameters is not used yet: the outcome is a weight.
    used = hides or varies
    looked_up = any(isinstance(p.start, RuntimeStart) for dim in rule.operands[at] for p in dim)
    by_inputs = looked_up and any(values[i].varies for i in rule.chooses)
    return used, not used or (by_inputs and not hides)


def _roles(rule: OpRule, at: int, view: LeafView) -> Iterable[tuple[int, str]]:
    """Yield the roles of the leaf's axes in a product or a lookup."""
    others = factors_of(*(rule.operands[i] for i in rule.data if i != at))
    reduced, parts = rule.reduced, _parts_of_factors(rule, at, view)
    for dim, own in zip(rule.operands[at], view.dims, strict=True):
        if any(isinstance(place.start, RuntimeStart) for place in dim):
            # Chosen by indices: rows of an embedding, or the expert of a group of rows.
            role = BATCH if rule.kind is Kind.CONTRACTION else LOOKUP
            yield from ((axis, role) for axis, _ in own)
            continue
        for factor in factors_of([dim]):
            role = CONTRACTED if factor in reduced else BATCH if factor in others else OUTPUT
            role = OUTPUT if rule.kind is not Kind.CONTRACTION else role
            yield from ((axis, role) for axis, _ in parts.get(factor, ()))


def _move(rule: OpRule, at: int, view: LeafView) -> Iterable[LeafView | None]:
    """Yield the leaf as each outcome of a step holds it; None if the outcome does not."""
    parts = _parts_of_factors(rule, at, view)
    for flat in rule.flat:  # without common factors, each new axis may hold any part
        own = tuple(part for axis in flat.operand for part in view.dims[axis])
        for axis in flat.outcome:
            parts |= dict.fromkeys(factors_of([rule.outcomes[0][axis]]), own)
    # On an axis of several entries without a factor, one entry was selected.
    taken = tuple(
        axis
        for dim, own in zip(rule.operands[at], view.dims, strict=True)
        for axis, entries in own
        if entries > 1 and not factors_of([dim])
    )
    for outcome, dims in enumerate(rule.outcomes):
        if rule.kind is Kind.MADE or at not in rule.sources_of(outcome):
            yield None
        else:
            layers = tuple(dict.fromkeys((*view.layers, *taken)))
            yield LeafView(view.path, tuple(_join(dim, parts) for dim in dims), layers)


def _join(dim: Dim, parts: Mapping[int, Parts]) -> Parts:
    """Return the leaf axes that a dimension of an outcome consists of, without duplicates."""
    found = [part for place in dim for factor in place.names for part in parts.get(factor, ())]
    return tuple(dict.fromkeys(found)) if len(dim) > 1 else tuple(found)


def _parts_of_factors(rule: OpRule, at: int, view: LeafView) -> dict[int, Parts]:
    """Return the leaf axes that each factor of an operand runs over."""
    found: dict[int, Parts] = {}
    shape = rule.operand_shapes[at]
    for dim, own, size in zip(rule.operands[at], view.dims, shape, strict=True):
        for place in dim:
            for factor, part in zip(place.names, _divide(rule, place, own, size), strict=True):
                found[factor] = tuple(dict.fromkeys((*found.get(factor, ()), *part)))
    return found


def _divide(rule: OpRule, place: Place, own: Parts, size: int) -> list[Parts]:
    """Divide the leaf axes of an array axis among the factors that index the array axis.

    If factors and parts do not fit each other, for example after uneven slices, each factor gets
    all parts, so that roles still cover the right axes.
    """
    sizes = [rule.sizes[factor] for factor in place.names]
    if math.prod(sizes) != size or len(own) < 2:
        return [own] * len(sizes)
    left, found = list(own), []
    for count in sizes:
        mine: list[tuple[int, int]] = []
        # Leaf axes of size 1 go to the factor before them.
        while left and (count > 1 or left[0][1] == 1):
            axis, entries = left.pop(0)
            if count % entries == 0:
                count //= entries
            # The factor covers the major part of a leaf axis; the next factor gets the rest.
            elif entries % count == 0:
                left.insert(0, (axis, entries // count))
                entries, count = count, 1
            else:
                return [own] * len(sizes)
            mine.append((axis, entries))
        found.append(tuple(mine))
    if left and found:
        found[-1] = (*found[-1], *left)
    return found


def axes_of(given: Traced) -> AxesTable:
    """Find the contracted, output and batch axes of every float leaf of the parameters.

    Args:
        given: the traced function.
    """
    domain, shapes, inputs = AxisRoles(), {}, []
    for path, argument, variable in zip(
        given.paths, given.arguments, given.program.jaxpr.invars, strict=True
    ):
        shape, dtype = tuple(variable.aval.shape), variable.aval.dtype
        if argument != 0:
            inputs.append(AxisValue(varies=True))
        # Only floats are weights; tables of indices and random keys count as constants.
        elif jnp.issubdtype(dtype, jnp.floating):
            shapes[path] = shape
            dims = tuple(((axis, size),) for axis, size in enumerate(shape))
            inputs.append(AxisValue((LeafView(path, dims),)))
        else:
            inputs.append(AxisValue())
    found = Walk(domain, given.table).run(given.program, inputs)
    kept = given.selected(found)
    ends = {end for value in kept if value is not None for end in value.ends}
    return _table(shapes, domain.uses, {path for _, path in ends - domain.inner})


def _table(
    shapes: Mapping[str, Shape], uses: Mapping[tuple[str, Location], AxisUse], last: set[str]
) -> AxesTable:
    found, every, unknown, lookups = {}, {}, {}, {}
    for path, shape in shapes.items():
        mine = [uses[key] for key in sorted(k for k in uses if k[0] == path)]
        known = [(use, _axes(use, len(shape))) for use in mine]
        axes = [one for _, one in known if isinstance(one, Axes)]
        # A lookup does not disagree: a tied embedding has the axes of its product.
        products = list(dict.fromkeys(one for one in axes if not one.lookup))
        every[path] = tuple(axes)
        if len(products) > 1:
            unknown[path] = _disagreement(known)
        elif axes:
            found[path] = products[0] if products else axes[0]
        else:
            unknown[path] = _why_not(known)
        if axes and not products:
            lookups[path] = "it is only looked up"
    left_out = dict(lookups)
    ends = {path: "the last product" for path in found if path in last and path not in lookups}
    if len(left_out) + len(ends) < len(found):  # a model of one product has no other weight
        left_out |= ends
    return AxesTable(found, every, left_out, unknown)


def _axes(use: AxisUse, ndim: int) -> Axes | str:
    """Return the axes of a leaf in one use, or the reason why they are not known."""
    if use.reason:
        return use.reason
    kinds = {role for _, role in use.roles}
    if not kinds & {CONTRACTED, LOOKUP}:
        return f"{use.primitive} does not sum over it"
    roles: dict[str, list[int]] = {CONTRACTED: [], OUTPUT: [], BATCH: []}
    for axis in range(ndim):
        mine = {role for at, role in use.roles if at == axis}
        mine = mine or {OUTPUT}  # an axis of size 1, or one that was reduced before
        summed = mine & {CONTRACTED, LOOKUP}
        if summed and mine - summed:
            return f"{use.primitive} both sums over its axis {axis} and keeps it"
        name = CONTRACTED if summed else OUTPUT if OUTPUT in mine else BATCH
        roles[name].append(axis)
    return Axes(
        tuple(roles[CONTRACTED]), tuple(roles[OUTPUT]), tuple(roles[BATCH]), LOOKUP in kinds
    )


def _disagreement(known: Sequence[tuple[AxisUse, Axes | str]]) -> str:
    """Describe the conflicting uses of a leaf: the axes in each, and the user's line."""
    each: dict[Axes, str] = {}
    for use, axes in known:
        if isinstance(axes, Axes) and not axes.lookup:
            where = f" at {use.line}" if use.line else ""
            each.setdefault(axes, f"{axes} in {use.primitive}{where}")
    return f"its uses disagree: {', '.join(each.values())}"


def _why_not(known: Sequence[tuple[AxisUse, Axes | str]]) -> str:
    reasons = dict.fromkeys(text for _, text in known if isinstance(text, str))
    return "; ".join(reasons) or "no product uses it"
