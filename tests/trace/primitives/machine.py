"""Checks of rules by machine: the primitive itself is bound, and its outcome compared."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.trace.jaxpr import bind, closed, is_variable, primitives
from nnopt_jax.trace.primitives import Kind, OpRule, Place, RuntimeStart, Same, rule_of

Index = np.ndarray
Starts = Callable[[RuntimeStart, dict[int, Index]], Index]


def captured(function, *args) -> dict[str, tuple[Any, list[Any]]]:
    """The first equation of each primitive in a function, with the values of its operands."""
    found = {}

    def run(program, values):
        known = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
        known.update(zip(program.jaxpr.invars, values, strict=True))
        read = lambda x: known[x] if is_variable(x) else x.val  # noqa: E731
        for equation in program.jaxpr.eqns:
            given = [read(x) for x in equation.invars]
            if equation.primitive is primitives.jit_p:
                out = run(closed(equation.params["jaxpr"]), given)
            else:
                found.setdefault(equation.primitive.name, (equation, given))
                out = bind(equation, given)
            known.update(zip(equation.outvars, out, strict=True))
        return [read(x) for x in program.jaxpr.outvars]

    run(jax.make_jaxpr(function)(*args), jax.tree.leaves(args))
    return found


def links(rule: OpRule, values: Sequence[Any], i: int, o: int, starts: Starts | None = None) -> set:
    """Pairs of flat positions of operand `i` and outcome `o` that the rule says are linked.

    Along factors that are needed whole, other than those of windows, every position is linked with
    every other.
    """
    pair = rule.pair(i, o)
    if pair is None:
        return set()
    also = [rule.pair(k, o) for k in rule.data] if rule.kind is Kind.CONTRACTION else []
    others = [(k, found[0]) for k, found in zip(rule.data, also, strict=False) if found and k != i]
    places = [*pair[0], *pair[1], *(p for _, own in others for p in own)]
    asked = {p.start.operand for p in places if isinstance(p.start, RuntimeStart)}
    read = [p for k in asked for dim in rule.operands[k] for p in dim]
    names = sorted({f for p in (*places, *read) for f in p.names})
    windowed = {
        f for p in places if len(p.names) == 2 and {*p.names} <= rule.whole for f in p.names
    }
    flat = {f for link in rule.flat for a in link.operand for f in rule.operands[0][a][0].names}
    flat_after = [
        f for link in rule.flat for a in link.outcome for f in rule.outcomes[0][a][0].names
    ]
    loose = [f for f in names if f in rule.whole - windowed - flat - {*flat_after}]
    ranges = [rule.sizes[f] for f in (*names, *loose)]
    grid = np.indices(ranges).reshape(len(ranges), int(np.prod(ranges)))
    before = dict(zip(names, grid, strict=False))
    after = before | dict(zip(loose, grid[len(names) :], strict=True))
    keep = np.ones(grid.shape[1], bool)
    for link in rule.flat:  # the outcome's factors follow from the operand's
        ours, theirs = (
            [(dims[a][0].names[0], rule.sizes[dims[a][0].names[0]]) for a in own]
            for dims, own in ((rule.operands[0], link.operand), (rule.outcomes[0], link.outcome))
        )
        linear = np.ravel_multi_index([before[f] for f, _ in ours], [n for _, n in ours])
        rows = np.unravel_index(linear, [n for _, n in theirs])
        for (f, _), row in zip(theirs, rows, strict=True):
            keep &= after[f] == row
    starts = starts or (lambda start, at: _start(rule, values, start, at))
    first, inside = _positions(pair[0], rule.operand_shapes[i], before, starts)
    second, within = _positions(pair[1], rule.outcome_shapes[o], after, starts)
    keep &= inside & within
    for k, own in others:  # a product with padding adds nothing
        keep &= _positions(own, rule.operand_shapes[k], before, starts)[1]
    return set(zip(first[keep].tolist(), second[keep].tolist(), strict=True))


def _start(rule: OpRule, values: Sequence[Any], start: RuntimeStart, at: dict[int, Index]) -> Index:
    value = np.asarray(values[start.operand])
    if start.entry is None:
        return value
    lead = [sum(s * at[f] for f, s in dim[0].factors) for dim in rule.operands[start.operand][:-1]]
    return value[(*lead, start.entry)]


def _positions(places: Sequence[Place], shape, at, starts) -> tuple[Index, Index]:
    count = len(next(iter(at.values()))) if at else 1
    flat, inside = np.zeros(count, int), np.ones(count, bool)
    for place, n in zip(places, shape, strict=True):
        start = starts(place.start, at) if isinstance(place.start, RuntimeStart) else place.start
        index = start + sum(stride * at[f] for f, stride in place.factors) + np.zeros(count, int)
        inside &= (index % place.holes == 0) & (index // place.holes < n) & (index >= 0)
        flat = flat * n + index // place.holes
    return flat, inside


def check_values(equation, values, starts: Starts | None = None) -> None:
    """Every entry of the outcome is the operand's that the places say, or the filler."""
    rule = rule_of(equation)
    for o, got in enumerate(bind(equation, values)):
        got = np.asarray(got)
        wanted = np.full(got.size, np.nan if rule.fills is None else float(values[rule.fills]))
        for i in rule.data:
            if i == rule.fills:
                continue
            found = sorted(links(rule, values, i, o, starts))
            assert len({at for _, at in found}) == len(found), "an entry from two places"
            source = np.asarray(values[i], float).reshape(-1)
            for at, to in found:
                wanted[to] = source[at]
        np.testing.assert_array_equal(got.reshape(-1).astype(float), wanted, err_msg=str(rule))


def check_changes(
    equation, bases: Sequence[Sequence[Any]], exact: bool = True, starts: Starts | None = None
) -> None:
    """An operand's entry changes the entries of the outcome that the rule links with it.

    Args:
        equation: what is bound.
        bases: operands around which entries are changed, one at a time.
        exact: whether all linked entries change; else none but those.
        starts: starts at run time that are not simply what an operand holds.
    """
    rule = rule_of(equation)
    every = rule.kind is Kind.ELEMENTWISE
    replaces = rule.kind is Kind.UPDATE and rule.same is Same.IDENTITY
    for i in range(len(rule.operands)) if every else rule.data:
        if i == rule.fills:  # it is where no place reaches, which `check_values` compares
            continue
        changed = [set() for _ in rule.outcomes]
        linked = [set() for _ in rule.outcomes]
        for base in bases:
            for o in range(len(rule.outcomes)):
                found = links(rule, base, i, o, starts)
                later = [k for k in rule.data if replaces and k > i]
                hidden = {to for k in later for _, to in links(rule, base, k, o, starts)}
                linked[o] |= {(at, to) for at, to in found if to not in hidden}
            before = [np.asarray(_plain(x)) for x in bind(equation, base)]
            for at, new in _changes(base[i], every):
                given = [new if k == i else x for k, x in enumerate(base)]
                for o, y in enumerate(bind(equation, given)):
                    differs = ~_equal(before[o], np.asarray(_plain(y)), exact)
                    changed[o] |= {(at, int(to)) for to in np.flatnonzero(differs)}
        for o, found in enumerate(changed):
            assert found <= linked[o], f"{rule}: operand {i} changes more of outcome {o}"
            if exact:
                assert found == linked[o], f"{rule}: operand {i} changes less of outcome {o}"


def _plain(x):
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    if not is_key:
        return x
    words = jax.random.key_data(x)
    return words[..., 0] + 7 * words[..., 1]


def _equal(a: np.ndarray, b: np.ndarray, exact: bool) -> np.ndarray:
    if exact:
        return ((a == b) | ((a != a) & (b != b))).reshape(-1)
    if a.dtype.kind in "fc":  # some functions iterate until all entries have converged
        return np.isclose(a, b, rtol=1e-6, atol=0, equal_nan=True).reshape(-1)
    return (a == b).reshape(-1)


def _changes(x, infinite):
    """Copies of an array in which one entry is another, with the position of the entry."""
    x = jnp.asarray(x)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        for at in range(x.size):
            keys = x.reshape(-1)
            yield at, keys.at[at].set(jax.random.fold_in(keys[at], 1)).reshape(x.shape)
        return
    array = np.asarray(x)
    if array.dtype == bool:
        functions = [np.logical_not]
    elif np.issubdtype(array.dtype, np.integer):
        functions = [np.invert, lambda v: v + 1]
    else:
        functions = [lambda v: v + 0.11, lambda v: v + 7.3, lambda v: v - 7.3]
        functions += [lambda v: v * np.inf] if infinite else []  # which decompositions never end on
    for at, function in itertools.product(range(array.size), functions):
        new = array.copy()
        new.reshape(-1)[at] = function(new.reshape(-1)[at])
        yield at, jnp.asarray(new)
