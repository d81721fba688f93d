"""The abstract walk: control flow, dead code, and steps that are seen more than once."""

from __future__ import annotations

import collections
import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

import nnopt_jax as nnopt
from nnopt_jax import Axes
from nnopt_jax.trace.abstract_walk import Domain, Walk

IN_OUT, OUT_IN = Axes(0, 1), Axes(1, 0)


@dataclasses.dataclass
class Origins(Domain):
    """An analysis for these tests: the inputs that a value depends on, and which steps are seen."""

    seen: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    names: dict = dataclasses.field(default_factory=dict)
    times: dict = dataclasses.field(default_factory=dict)
    cuts: list = dataclasses.field(default_factory=list)
    left: list = dataclasses.field(default_factory=list)

    def constant(self, x):
        return frozenset()

    def join(self, one, other):
        return one | other

    def is_same(self, one, other):
        return one == other

    def layer(self, value, site):
        return value | {"layer"}

    def stack(self, value, times, site):
        return value | {f"stack of {times}"}

    def part(self, value, cut, mesh, site):
        self.cuts.append(cut)
        return value

    def whole(self, value, cut, mesh, site):
        return value

    def leave(self, programs, values, outcomes, site):
        self.left.append((len(values), len(outcomes)))
        return outcomes

    def step(self, equation, rule, values, site):
        assert len(values) == len(equation.invars)
        self.seen[site.location] += 1
        self.names[site.location] = equation.primitive.name
        self.times[site.location] = site.times
        known = frozenset().union(*(value for value in values if value is not None))
        return [known for _ in equation.outvars]

    def of(self, name):
        """Locations of the steps of one primitive."""
        return [at for at, primitive in self.names.items() if primitive == name]


def walked(function, *args, wanted=None):
    """What each outcome depends on, inputs named a, b, c in their order; and what was seen."""
    domain = Origins()
    program = jax.make_jaxpr(function)(*args)
    names = [frozenset({"abcdef"[i]}) for i in range(len(program.jaxpr.invars))]
    return Walk(domain).run(program, names, wanted), domain


SQUARE = jnp.ones((3, 3))


@jax.custom_jvp
def forward_rule(a, b):
    return jnp.sin(a) @ b


forward_rule.defjvp(lambda given, slopes: (forward_rule(*given), jnp.cos(given[0]) @ slopes[1]))


@jax.custom_vjp
def backward_rule(a, b):
    return jnp.sin(a) @ b


backward_rule.defvjp(
    lambda a, b: (backward_rule(a, b), None), lambda _, slope: (jnp.cos(slope), slope)
)


def sharded(a, b):
    mesh = Mesh(jax.devices()[:2], ("model",))
    rows, whole = PartitionSpec("model"), PartitionSpec()
    run = jax.shard_map(
        lambda a, b: jnp.sin(a) @ b, mesh=mesh, in_specs=(rows, whole), out_specs=rows
    )
    return run(jnp.concatenate([a, a]), b)


# Functions of (a, b, c) whose outcome depends on a and b and not on c.
FLOWS = {
    "straight": lambda a, b, c: jnp.sin(a) @ b,
    "jit": lambda a, b, c: jax.jit(lambda a, b: jnp.sin(a) @ b)(a, b),
    "jit in jit": lambda a, b, c: jax.jit(lambda a: jax.jit(lambda a: jnp.sin(a) @ b)(a))(a),
    "remat": lambda a, b, c: jax.checkpoint(lambda a, b: jnp.sin(a) @ b)(a, b),
    "custom_jvp": lambda a, b, c: forward_rule(a, b),
    "custom_vjp": lambda a, b, c: backward_rule(a, b),
    "cond": lambda a, b, c: lax.cond(True, lambda: jnp.sin(a), lambda: b),
    "fori": lambda a, b, c: lax.fori_loop(0, 3, lambda _, x: jnp.sin(x) @ b, a),
    "while": lambda a, b, c: lax.while_loop(lambda x: x.sum() < 9, lambda x: jnp.sin(x) @ b, a),
    "vmap": lambda a, b, c: jax.vmap(lambda row: jnp.sin(row) @ b)(a),
    "shard_map": lambda a, b, c: sharded(a, b),
}


@pytest.mark.parametrize("name", FLOWS)
def test_values_go_through_programs_inside_of_programs(name):
    (found,), domain = walked(FLOWS[name], SQUARE, SQUARE, SQUARE)
    assert found == {"a", "b"}
    assert len(domain.of("sin")) == 1  # once, although a rule of derivatives has steps of its own
    assert not domain.of("cos")
    assert bool(domain.left) == (name not in ("straight", "vmap"))  # these hold no program


def test_layers_and_stacks_of_a_scan():
    def apply(a, b):
        return lax.scan(lambda x, w: (x @ w, x + 1), a, b)

    (carry, stack), _ = walked(apply, SQUARE, jnp.ones((4, 3, 3)))
    assert carry == {"a", "b", "layer"}
    assert stack == {"a", "b", "layer", "stack of 4"}


def test_both_branches_are_joined_and_predicates_are_not():
    (found,), domain = walked(
        lambda a, b, c: lax.cond(c[0, 0] > 0, jnp.sin, jnp.cos, a) + b, SQUARE, SQUARE, SQUARE
    )
    assert found == {"a", "b"}
    assert len(domain.of("sin")) == len(domain.of("cos")) == 1
    assert domain.of("sin")[0][:-2] == domain.of("cos")[0][:-2]  # of one equation
    assert domain.of("sin") != domain.of("cos")


def test_bodies_are_walked_until_nothing_new_is_found():
    """What is known of c reaches the first place of the carry in the third turn."""

    def apply(a, b, c):
        return lax.fori_loop(0, 9, lambda _, s: (s[1], s[2], jnp.sin(s[2])), (a, b, c))

    (first, second, third), domain = walked(apply, SQUARE, SQUARE, SQUARE)
    assert (first, second, third) == ({"a", "b", "c"}, {"b", "c"}, {"c"})
    (at,) = domain.of("sin")
    assert domain.seen[at] > 2
    assert domain.times[at] == 9


def test_steps_are_known_by_where_they_are():
    """An inner function that is called twice has steps at two places."""
    inner = jax.jit(lambda a, b: a @ b)
    (found,), domain = walked(lambda a, b: inner(inner(a, b), b), SQUARE, SQUARE)
    assert found == {"a", "b"}
    assert len(domain.of("dot_general")) == 2
    assert set(domain.seen.values()) == {1}


def test_how_often_a_step_runs():
    def apply(a, b):
        def inner(_, x):
            return jnp.sin(x)

        x = lax.fori_loop(0, 2, lambda _, x: lax.fori_loop(0, 3, inner, x), a)
        x = lax.while_loop(lambda x: x.sum() < 9, jnp.cos, x)
        return jnp.tan(sharded(x, b))

    _, domain = walked(apply, SQUARE, SQUARE)
    times = {name: domain.times[domain.of(name)[0]] for name in ("cos", "tan")}
    assert times == {"cos": 1, "tan": 1}
    assert sorted(domain.times[at] for at in domain.of("sin")) == [2, 6]  # two devices; two threes


def test_parts_of_a_mesh_say_which_axes_are_cut():
    _, domain = walked(sharded, SQUARE, SQUARE)
    (first, second) = domain.cuts
    assert [bool(names) for names in first] == [True, False]
    assert not any(second)


def test_dead_steps_are_not_seen():
    @jax.jit
    def both(a, b):
        return jnp.sin(a), jnp.cos(b)

    def apply(a, b, c):
        def step(carry, x):
            used, dead, lost = carry
            return (jnp.tanh(used), jnp.exp(dead), jnp.exp(lost) + used), jnp.log(x)

        (used, *_), _ = lax.scan(step, (both(a, b)[0], c, c), SQUARE)
        _ = jnp.sqrt(b)
        return used

    (found,), domain = walked(apply, jnp.ones(3), SQUARE, jnp.ones(3))
    assert found == {"a"}
    assert set(domain.names.values()) == {"sin", "tanh"}


def test_a_carry_that_only_a_later_turn_needs_is_alive():
    def apply(a, b, c):
        return lax.fori_loop(0, 3, lambda _, s: (s[1], jnp.cos(s[2]), jnp.sin(s[2])), (a, b, c))[0]

    (found,), domain = walked(apply, SQUARE, SQUARE, SQUARE)
    assert found == {"a", "b", "c"}
    assert domain.of("cos")
    assert domain.of("sin")


def test_outcomes_that_nobody_wants_need_nothing():
    def apply(a, b):
        return jnp.sin(a), jnp.cos(b)

    (first, _), domain = walked(apply, SQUARE, SQUARE, wanted=[True, False])
    assert first == {"a"}
    assert set(domain.names.values()) == {"sin"}


def test_joins_bear_dead_values():
    """Branches and iterations of a loop of which some outcomes are not needed."""

    def branches(a, b, c):
        kept, _ = lax.cond(
            c[0, 0] > 0, lambda: (jnp.sin(a), jnp.exp(b)), lambda: (jnp.cos(b), jnp.exp(a))
        )
        return kept

    (found,), domain = walked(branches, SQUARE, SQUARE, SQUARE)
    assert found == {"a", "b"}
    assert not domain.of("exp")

    def turns(a, b, c):
        def step(carry, _):
            x, dead = carry
            return lax.cond(x[0, 0] > 0, lambda: (x @ a, dead + x), lambda: (x, jnp.exp(b))), None

        return lax.scan(step, (c, b), None, length=2)[0][0]

    (found,), domain = walked(turns, SQUARE, SQUARE, SQUARE)
    assert found == {"a", "c"}
    assert not domain.of("exp")


def test_the_test_of_a_loop_is_walked():
    def apply(a, b):
        return lax.while_loop(lambda x: (x @ b).sum() < 9, jnp.sin, a)

    (found,), domain = walked(apply, SQUARE, SQUARE)
    assert found == {"a"}
    assert len(domain.of("dot_general")) == 1


# Axes of weights, through the same pitfalls.


def axes(function, *inputs, **shapes):
    params = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    return nnopt.graph(function, params, *inputs).axes


X = jnp.ones((2, 3))


def test_a_body_that_is_walked_again_notes_one_use():
    def apply(p, x):
        def body(_, state):
            first, second, x = state  # one and the other in turns
            return second, first, jnp.tanh(x @ first)

        return lax.fori_loop(0, 5, body, (p["w"], p["v"], x))[2]

    table = axes(apply, X, w=(3, 3), v=(3, 3))
    assert dict(table) == {"w": IN_OUT, "v": IN_OUT}
    assert table.uses["w"] == table.uses["v"] == (IN_OUT,)


def test_both_orientations_in_turns_are_no_axes():
    def apply(p, x):
        return lax.fori_loop(0, 4, lambda _, s: (s[0].T, jnp.tanh(s[1] @ s[0])), (p["w"], x))[1]

    table = axes(apply, X, w=(3, 3))
    assert not dict(table)
    assert table.unknown["w"] == "dot_general both sums over its axis 0 and keeps it"


def test_an_axis_of_which_a_part_is_summed_has_no_role():
    def apply(p, x):
        return jnp.einsum("bi,ioj->boj", x, p["w"].reshape(3, 2, 4)) @ p["v"].reshape(4, 2, 3)[:, 0]

    table = axes(apply, X, w=(6, 4), v=(4, 6))
    assert dict(table.unknown) == {"w": "dot_general both sums over its axis 0 and keeps it"}
    assert table["v"] == IN_OUT


def test_dead_products_note_no_use():
    def apply(p, x):
        @jax.jit
        def both(w, x):
            return x @ w, x @ w.T

        def step(carry, _):
            kept, lost = carry
            return (kept @ p["w"], lost @ p["v"]), x @ p["v"].T

        (kept, _), _ = lax.scan(step, (both(p["w"], x)[0], x), None, length=2)
        return kept

    table = axes(apply, X, w=(3, 3), v=(3, 3))
    assert dict(table) == {"w": IN_OUT}
    assert table.uses["w"] == (IN_OUT, IN_OUT)
    assert dict(table.unknown) == {"v": "no product uses it"}


def test_leaves_in_the_test_of_a_loop_are_used():
    def apply(p, x):
        return lax.while_loop(lambda x: (x @ p["v"].T).sum() < 9, lambda x: jnp.tanh(x @ p["w"]), x)

    assert dict(axes(apply, X, w=(3, 3), v=(1, 3))) == {"w": IN_OUT, "v": OUT_IN}


@pytest.mark.parametrize(
    ("product", "shape", "expected"),
    [
        (lambda x, w: x @ w, (3, 1), IN_OUT),
        (lambda x, w: x[:, :1] @ w, (1, 4), IN_OUT),
        (lambda x, w: x[:, :1] @ w, (1, 1), IN_OUT),
        (lambda x, w: x[:, :1] @ w.T, (1, 1), OUT_IN),
        (lambda x, w: x @ w.reshape(3, 1), (3, 1, 1), Axes(0, (1, 2))),
        (lambda x, w: jnp.einsum("bi,iho->bho", x, w), (3, 1, 4), Axes(0, (1, 2))),
        (lambda x, w: jnp.einsum("bhi,hio->bo", x[:, None], w), (1, 3, 4), Axes((0, 1), 2)),
        (lambda x, w: jnp.einsum("ebi,eio->ebo", x[None], w), (1, 3, 4), Axes(1, 2, 0)),
        (lambda x, w: lax.scan(lambda x, w: (x @ w, None), x, w)[0], (1, 3, 3), Axes(1, 2, 0)),
    ],
)
def test_axes_of_one_entry_keep_their_roles(product, shape, expected):
    table = axes(lambda p, x: product(x, p["w"]), X, w=shape)
    assert dict(table) == {"w": expected}
