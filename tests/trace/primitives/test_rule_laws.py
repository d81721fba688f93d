"""Laws of rules over drawn settings, and the traps that an earlier table fell into."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax import lax
from jax.extend.core import Primitive
from jax.sharding import AbstractMesh, AxisType, PartitionSpec as P

from nnopt_jax.errors import CompositionError
from nnopt_jax.trace.jaxpr import bind
from nnopt_jax.trace.primitives import (
    ONE,
    TABLE,
    Draft,
    Flat,
    Kind,
    Place,
    RuntimeStart,
    Same,
    axis,
    elementwise_rule,
    factors_of,
    named,
    opaque_rule,
    rule_of,
)
from tests.trace.primitives.cases import ELEMENTWISE, convolved, drawn
from tests.trace.primitives.machine import captured, check_changes, check_values

SIZES = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3)


def equation_of(function, *args):
    return jax.make_jaxpr(function)(*args).jaxpr.eqns[-1]


def numbered(*shape):
    return jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape) + 1000


def agree(name, function, *args):
    check_values(*captured(function, *args)[name])


@settings(max_examples=30)
@given(SIZES, st.randoms(use_true_random=False))
def test_reshapes(shape, rng):
    left, target = int(np.prod(shape)), []
    while left > 1:
        target.append(rng.choice([n for n in range(2, left + 1) if left % n == 0]))
        left //= target[-1]
    for _ in range(rng.randrange(3)):
        target.insert(rng.randrange(len(target) + 1), 1)

    def function(x):
        (reshape_p,) = named("reshape")
        return reshape_p.bind(x, new_sizes=tuple(target), dimensions=None, sharding=None)

    agree("reshape", function, numbered(*shape))


@given(SIZES, st.data())
def test_slices(shape, data):
    starts = [data.draw(st.integers(0, n - 1)) for n in shape]
    limits = [data.draw(st.integers(s + 1, n)) for s, n in zip(starts, shape, strict=True)]
    strides = [data.draw(st.integers(1, 3)) for _ in shape]
    agree(
        "slice",
        lambda x: named("slice")[0].bind(
            x, start_indices=tuple(starts), limit_indices=tuple(limits), strides=tuple(strides)
        ),
        numbered(*shape),
    )


@settings(max_examples=30)
@given(SIZES, st.data())
def test_pads(shape, data):
    config = []
    for n in shape:
        interior = data.draw(st.integers(0, 2))
        full = n + (n - 1) * interior
        low = data.draw(st.integers(-full, 2))
        high = data.draw(st.integers(-(full + min(low, 0)), 2))
        config.append((low, high, interior))
    agree("pad", lambda x: lax.pad(x, jnp.float32(-1), config), numbered(*shape))


@given(st.data())
def test_gathers(data):
    shape = (4, 5, 3)
    window = [data.draw(st.integers(1, n)) for n in shape]
    asked = data.draw(st.permutations(range(3)))[: data.draw(st.integers(1, 3))]
    collapsed = [a for a in range(3) if window[a] == 1 and data.draw(st.booleans())]
    rows = [[data.draw(st.integers(0, shape[a] - window[a])) for a in asked] for _ in range(2)]
    rank = 1 + 3 - len(collapsed)
    offset = data.draw(st.permutations(range(rank)))[: 3 - len(collapsed)]
    numbers = lax.GatherDimensionNumbers(tuple(sorted(offset)), tuple(collapsed), tuple(asked))
    agree(
        "gather",
        lambda x, i: lax.gather(x, i, numbers, tuple(window)),
        numbered(*shape),
        jnp.asarray(rows),
    )


@given(st.data())
def test_products(data):
    text, other = data.draw(st.permutations("abc")), data.draw(st.permutations("abd"))
    kept = [x for x in "cd" if data.draw(st.booleans())] + ["a"]
    sizes = {"a": 2, "b": 3, "c": 2, "d": 1}
    shapes = [[sizes[x] for x in own] for own in (text, other)]
    out = "".join(data.draw(st.permutations(kept)))
    found = captured(
        lambda x, y: jnp.einsum(f"{''.join(text)},{''.join(other)}->{out}", x, y),
        *(drawn(*s) for s in shapes),
    )
    equation, values = found["dot_general"]
    check_changes(equation, [values])


@settings(max_examples=15)
@given(st.data())
def test_convolutions(data):
    whole = st.integers(1, 2)
    groups, batch_groups = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    size, taps = data.draw(st.integers(2, 4)), data.draw(whole)
    function = convolved(
        window_strides=(data.draw(whole),),
        padding=((data.draw(st.integers(-1, 2)), data.draw(st.integers(0, 2))),),
        lhs_dilation=(data.draw(whole),),
        rhs_dilation=(data.draw(whole),),
        feature_group_count=groups,
        batch_group_count=batch_groups,
    )
    channels, outputs = data.draw(whole), data.draw(whole) * groups * batch_groups
    operands = drawn(batch_groups, size, channels * groups), drawn(taps, channels, outputs)
    equation = equation_of(function, *operands)
    check_changes(equation, [operands])


NUMBERS = [  # contraction over k; the ragged axis is free, contracted, or a batch
    (((((1,), (1,)), ((), ())), (0,), (0,)), (5, 2), (3, 2, 2)),
    (((((0,), (0,)), ((), ())), (0,), ()), (5, 2), (5, 2)),
    (((((2,), (1,)), ((0,), (0,))), (0,), ()), (5, 2, 2), (5, 2, 2)),
]


@pytest.mark.parametrize(("numbers", "left", "right"), NUMBERS)
def test_ragged_products(numbers, left, right):
    sizes = jnp.asarray([2, 0, 3])
    settings = lax.RaggedDotDimensionNumbers(*numbers)
    function = lambda x, y, g: lax.ragged_dot_general(x, y, g, settings)  # noqa: E731
    equation, values = captured(function, drawn(*left), drawn(*right), sizes)["ragged_dot_general"]
    rule = rule_of(equation)
    (ragged,) = rule.operands[0][numbers[1][0]][0].names

    def starts(start, at):
        return np.searchsorted(np.cumsum(np.asarray(sizes)), at[ragged], side="right")

    check_changes(equation, [values], starts=starts)
    assert (
        rule.products
        == {0: 5 * 2 * 2, 1: 5 * 2 * 2, 2: 5 * 2 * 2 * 2}[NUMBERS.index((numbers, left, right))]
    )


def test_concatenated_entries_lie_in_places():
    rule = rule_of(equation_of(lambda x, y: jnp.concatenate([x, y], 1), drawn(2, 3), drawn(2, 4)))
    assert [place.start for place in rule.outcomes[0][1]] == [0, 3]
    assert rule.pair(0)[1][1].start == 0
    assert rule.pair(1)[1][1].start == 3
    assert rule.kept_last() == 0


def test_axes_of_one_entry_keep_their_factor():
    depthwise = rule_of(
        equation_of(convolved(feature_group_count=3), drawn(1, 3, 3), drawn(2, 1, 3))
    )
    (channel,) = depthwise.operands[1][1][0].names
    assert channel in depthwise.reduced
    reshaped = rule_of(equation_of(lambda x: lax.reshape(x, (6, 1, 4)), drawn(2, 3, 1, 4)))
    assert reshaped.operands[0][2] == reshaped.outcomes[0][1] != ONE
    assert rule_of(equation_of(lambda x: x[:, None], drawn(2, 3))).outcomes[0][1] == ONE


def test_a_single_group_has_no_factor():
    rule = rule_of(equation_of(convolved(), drawn(2, 3, 4), drawn(2, 4, 5)))
    assert len(rule.sizes) == 5  # rows, channels, outputs, positions, taps
    grouped = rule_of(equation_of(convolved(feature_group_count=2), drawn(2, 3, 4), drawn(2, 2, 6)))
    assert len(grouped.sizes) == 6  # and groups


def test_an_odd_reshape_is_flat():
    rule = rule_of(equation_of(lambda x: lax.reshape(x, (5, 8, 3)), drawn(5, 6, 4)))
    assert rule.flat == (Flat((1, 2), (1, 2)),)
    assert rule.reduced == frozenset()
    assert rule.operands[0][0] == rule.outcomes[0][0]


def test_derived_facts():
    turned = rule_of(equation_of(lambda x: x.transpose(1, 0, 2), drawn(2, 3, 4)))
    assert (turned.permutation, turned.kept_last(), turned.is_identity) == ((1, 0, 2), 1, False)
    assert rule_of(equation_of(lax.optimization_barrier, drawn(2, 1))).is_identity
    assert rule_of(equation_of(jnp.sin, drawn(2))).permutation is None
    assert rule_of(equation_of(lambda x: lax.rev(x, (0,)), drawn(2, 3))).permutation is None
    tiled = rule_of(equation_of(lambda x: jnp.tile(x, (2, 1)), drawn(2, 3)))
    repeated = factors_of(*tiled.outcomes) - factors_of(*tiled.operands)
    assert [tiled.sizes[f] for f in repeated] == [2]
    batched = rule_of(equation_of(jnp.matmul, drawn(5, 2, 3), drawn(5, 3, 4)))
    assert [batched.sizes[f] for f in batched.reduced] == [3]


@pytest.mark.parametrize(
    ("function", "same"),
    [
        (lambda x: x * 2.0, Same.SCALED),
        (lambda x: 2.0 * x, Same.SCALED),
        (lambda x: x / 2.0, Same.SCALED),
        (lambda x: 2.0 / x, Same.NO),
        (lambda x: x * x, Same.NO),
        (lambda x: -x, Same.SCALED),
        (lambda x: x.astype(jnp.bfloat16), Same.CAST),
        (lambda x: x.astype(jnp.int32), Same.NO),
        (lambda x: x.T, Same.IDENTITY),
        (jnp.sin, Same.NO),
    ],
)
def test_whether_values_stay(function, same):
    assert rule_of(equation_of(function, drawn(2, 3))).same is same


@pytest.mark.parametrize("case", [c for c in ELEMENTWISE if named(c.name)], ids=lambda c: c.name)
def test_absorbed_zeros(case):
    """Zeros make zeros, whatever the others are, of exactly the operands that `absorbs` names."""
    name = named(case.name)[0].name
    found = [captured(case.function, *base)[name] for base in case.bases]
    equation, rule = found[0][0], rule_of(found[0][0])
    if equation.outvars[0].aval.dtype == bool:
        return
    drawn_others = [
        [x if jnp.asarray(x).dtype == bool else sign * x for x in base]
        for _, base in found
        for sign in (1, -1)
    ]
    for i in (i for i, x in enumerate(found[0][1]) if jnp.asarray(x).dtype != bool):
        outcomes = [
            bind(equation, [jnp.zeros_like(x) if k == i else x for k, x in enumerate(others)])[0]
            for others in drawn_others
        ]
        assert (not any(np.any(np.asarray(y)) for y in outcomes)) == (i in rule.absorbs), (rule, i)


RESIZED = {
    "broadcast": (lambda x: jnp.broadcast_to(x, (2, 6)), (6,), [(4,)], (2, 4)),
    "reshape": (lambda x: lax.reshape(x, (12,)), (3, 4), [(3, 2)], (6,)),
    "tile": (lambda x: jnp.tile(x, (2, 1)), (3, 4), [(3, 2)], (6, 2)),
    "slice": (lambda x: lax.slice(x, (0, 1), (3, 3)), (3, 4), [(2, 4)], (2, 2)),
    "window": (lambda x: lax.dynamic_slice(x, (0, 1), (3, 2)), (3, 4), [(2, 4), (), ()], (2, 2)),
    "lookup": (lambda x: x[jnp.asarray([1, 0])], (3, 4), [(3, 2), (2, 1)], (2, 2)),
    "depthwise": (
        lambda x: convolved(feature_group_count=4)(x, jnp.ones((2, 1, 4))),
        (1, 3, 4), [(1, 3, 2), (2, 1, 2)], (1, 2, 2),
    ),
    "top": (lambda x: lax.top_k(x, 2)[0], (3, 4), [(2, 4)], (2, 2)),
    "split": (lambda x: lax.split(x, (2, 2)), (4, 6), [(4, 3)], (2, 3)),
    "iota": (lambda x: lax.iota(jnp.int32, 5), (1,), [], (3,)),
}  # fmt: skip


@pytest.mark.parametrize("name", RESIZED)
def test_parameters_at_other_shapes(name):
    function, shape, operands, outcome = RESIZED[name]
    equation = next(
        e for e in jax.make_jaxpr(function)(drawn(*shape)).jaxpr.eqns[::-1] if rule_of(e).resize
    )
    rule, outcomes = rule_of(equation), [outcome] * len(equation.outvars)
    smaller = rule.resized(equation, operands, outcomes)
    given = [
        jax.ShapeDtypeStruct(s, v.aval.dtype)
        for s, v in zip(operands, equation.invars, strict=True)
    ]
    found = jax.eval_shape(lambda *xs: bind(smaller, xs), *given)
    assert [x.shape for x in found] == outcomes


def test_a_primitive_of_ones_own():
    doubled_p = Primitive("doubled")
    doubled_p.def_abstract_eval(lambda x: x)
    doubled_p.def_impl(lambda x: 2 * x)
    equation = equation_of(doubled_p.bind, drawn(3))
    table = TABLE.with_rule(doubled_p, lambda e: elementwise_rule(e, same=Same.SCALED))
    assert rule_of(equation).kind is Kind.OPAQUE
    assert rule_of(equation, table).same is Same.SCALED
    assert (doubled_p in table, doubled_p in TABLE) == (True, False)
    with pytest.raises(TypeError):
        TABLE.rules[doubled_p] = opaque_rule


def test_a_rule_of_the_wrong_rank_is_an_error():
    draft = Draft(equation_of(jnp.sin, drawn(2, 3)))
    with pytest.raises(ValueError, match=r"sin: the rule has operands of \[1\] dimensions"):
        draft.rule(Kind.ELEMENTWISE, [[axis(draft.factor(2))]], [[]])


def test_starts_at_run_time_are_named():
    rule = rule_of(equation_of(lambda x, i: lax.dynamic_slice(x, (i,), (2,)), drawn(4), 1))
    assert rule.operands[0] == ((Place(((0, 1),), RuntimeStart(1)),),)
    with pytest.raises(ValueError, match="run time"):
        rule.operands[0][0][0].indices(rule.sizes)


def exchanged(x):
    return (
        lax.psum(x, "a"), lax.pmax(x, "a"), lax.pmin(x, "a"), lax.all_gather(x, "a"),
        lax.all_gather(x, "a", axis=1, tiled=True), lax.psum_scatter(x, "a", tiled=True),
        lax.all_to_all(x, "a", 0, 1, tiled=True), lax.ppermute(x, "a", [(0, 1), (1, 0)]),
    )  # fmt: skip


def test_exchanges_between_devices():
    mesh = AbstractMesh((2,), ("a",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(exchanged, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    program = equation_of(mapped, drawn(4, 6)).params["jaxpr"]
    rules = {e.primitive.name: rule_of(e) for e in program.eqns}
    assert all(rule.mesh == ("a",) for rule in rules.values())
    assert rules["psum"].operands == rules["psum"].outcomes
    # Rows become columns of the other device: no axis keeps its entries.
    assert len(rules["all_to_all"].whole) == 4
    columns = rules["all_gather"]
    assert columns.operands[0][0] == columns.outcomes[0][0] or len(columns.whole) == 5


@pytest.mark.parametrize(
    ("primitive", "make", "got"),
    [
        ("swish", elementwise_rule, "str and function"),
        (jnp.sin, elementwise_rule, "and function"),
        (Primitive("mine"), "elementwise", "Primitive and str"),
    ],
)
def test_entries_that_are_not_a_primitive_and_a_function_are_errors(primitive, make, got):
    for enter in (TABLE.with_rule, TABLE.with_programs):
        with pytest.raises(
            CompositionError, match=rf"{enter.__name__}: takes .* got .*{got}; give"
        ):
            enter(primitive, make)
