"""Programs that a table of primitives and a walk with joins can get wrong."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import PartitionSpec

import nnopt_jax as nnopt
from nnopt_jax.trace.coupling.axis_coupling import coupled_axes
from nnopt_jax.trace.coupling.rearrange import shrink
from nnopt_jax.trace.primitives import TABLE, elementwise_rule
from nnopt_jax.trace.traced import trace
from tests.trace.coupling.test_annotations import check_shrunk, drawn

X = drawn(4, 5)


def sizes(graph):
    return {each.name: each.size for each in graph.coupled.dimensions}


def places(dimension):
    return {place: at.tolist() for place, at in dimension.indices.items()}


def test_experts_of_a_ragged_product():
    """Experts stay; the features that go in, between and out are units of all experts."""

    def apply(p, x, groups):
        x = x @ p["in"]
        hidden = jax.nn.silu(lax.ragged_dot(x, p["up"], groups))
        return lax.ragged_dot(hidden, p["down"], groups) @ p["out"]

    params = {
        "in": drawn(5, 6), "up": drawn(3, 6, 8), "down": drawn(3, 8, 10), "out": drawn(10, 2),
    }  # fmt: skip
    x, groups = drawn(7, 5), jnp.array([2, 4, 1], jnp.int32)
    graph = nnopt.graph(apply, params, x, groups)
    assert sizes(graph) == {"up:2": 8, "down:2": 10, "in:1": 6}
    assert "ragged_dot_general combines entries along it" in graph.coupled.frozen["up", 0]
    check_shrunk(graph, params, x, groups)
    # By hand: each row with the matrices of its expert.
    keep = {"up:2": [0, 3], "in:1": [1, 2, 5]}
    small = graph.shrink(params, keep)
    p, rows = jax.tree.map(np.asarray, params), np.asarray(x)
    hidden = rows @ p["in"][:, [1, 2, 5]]
    expert = np.repeat(np.arange(3), [2, 4, 1])
    up = p["up"][:, [1, 2, 5]][:, :, [0, 3]][expert]
    hidden = np.einsum("ri,rio->ro", hidden, up)
    hidden = hidden / (1 + np.exp(-hidden))
    wanted = np.einsum("ri,rio->ro", hidden, p["down"][:, [0, 3]][expert]) @ p["out"]
    np.testing.assert_allclose(small.apply(small.params, x, groups), wanted, rtol=2e-5, atol=2e-6)


def test_rows_that_group_sizes_count_stay():
    apply = lambda p, x: lax.ragged_dot(p["rows"], p["w"], jnp.array([1, 3])).sum(0)  # noqa: E731
    graph = nnopt.graph(apply, {"rows": drawn(4, 3), "w": drawn(2, 3, 2)}, X)
    assert sizes(graph) == {"w:1": 3}


COLUMNS, ROWS, ALL = PartitionSpec(None, "model"), PartitionSpec("model", None), PartitionSpec()
MESH = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))


def over_mesh(function, *specs, out=ALL):
    return jax.shard_map(function, mesh=MESH, in_specs=specs, out_specs=out)


TP = {"a": drawn(5, 8), "b": drawn(8, 3)}


def test_units_of_tensor_parallel_layers_go_from_all_devices():
    """Column j of each device goes with row j of each device, never with another device's."""

    def apply(p, x):
        layer = lambda x, a, b: lax.psum(jax.nn.relu(x @ a) @ b, "model")  # noqa: E731
        return over_mesh(layer, ALL, COLUMNS, ROWS)(x, p["a"], p["b"])

    graph = nnopt.graph(apply, TP, X)
    pairs = [[j, j + 4] for j in range(4)]
    assert [places(d) for d in graph.coupled.dimensions] == [{("a", 1): pairs, ("b", 0): pairs}]
    check_shrunk(graph, TP, X)


def test_halves_that_devices_hold_differently_are_not_mixed_up():
    """One array whole on each device, the other cut: elements go by their positions in both."""

    def apply(p, x):
        rows = lambda h, b: lax.psum(h[:, :4] @ b, "model")  # noqa: E731
        return over_mesh(rows, ALL, ROWS)(jnp.tanh(x @ p["a"]), p["b"])

    graph = nnopt.graph(apply, TP, X)
    assert [places(d) for d in graph.coupled.dimensions] == [
        {("a", 1): [[j] for j in range(4)], ("b", 0): [[j, j + 4] for j in range(4)]}
    ]
    check_shrunk(graph, TP, X)


def test_what_devices_exchange_stays():
    def apply(p, x):
        gather = lambda h: lax.all_gather(h, "model", axis=1, tiled=True)  # noqa: E731
        mapped = jax.shard_map(gather, mesh=MESH, in_specs=COLUMNS, out_specs=ALL, check_vma=False)
        return mapped(x @ p["a"]) @ p["b"]

    graph = nnopt.graph(apply, TP, X)
    assert not graph.coupled.dimensions
    assert "all_gather needs it whole at test_hard" in graph.coupled.frozen["a", 1]


def test_a_part_outside_of_the_mesh_is_cut_there_too():
    def apply(p, x):
        scaled = lambda h: lax.pcast(jnp.float32(2), "model", to="varying") * h  # noqa: E731
        return over_mesh(scaled, COLUMNS, out=COLUMNS)(x @ p["a"]) @ p["b"]

    graph = nnopt.graph(apply, TP, X)
    assert [each.size for each in graph.coupled.dimensions] == [4]
    check_shrunk(graph, TP, X)


def test_a_loop_is_walked_until_what_units_leave_is_settled():
    """In the first turn the carry is zero where units are gone, in all others a half."""

    def apply(p, x):
        turn = lambda h, _: (jax.nn.sigmoid(h * p["c"][None]), h.max(-1))  # noqa: E731
        h, tops = lax.scan(turn, x @ p["a"], None, length=3)
        return h @ p["b"] + tops.sum()

    graph = nnopt.graph(apply, TP | {"c": drawn(8)}, X)
    assert "reduce_max would count" in graph.coupled.frozen["a", 1]
    summing = lambda p, x: lax.fori_loop(  # noqa: E731
        0, 3, lambda _, h: jnp.tanh(h * p["c"][None]) + h.sum(-1, keepdims=True) * p["d"][None],
        x @ p["a"],
    ) @ p["b"]  # fmt: skip
    params = TP | {"c": drawn(8), "d": drawn(8)}
    graph = nnopt.graph(summing, params, X)
    assert sizes(graph) == {"a:1": 8}
    check_shrunk(graph, params, X)


def test_constants_that_a_loop_carries_are_cut():
    zeros, ones = np.zeros((4, 8), np.float32), np.linspace(1, 2, 8, dtype=np.float32)

    def apply(p, x):
        turn = lambda h, _: (h + x @ p["a"] * ones[None], None)  # noqa: E731
        h, _ = lax.scan(turn, zeros, None, length=2)
        return lax.cond(x[0, 0] > 0, lambda: h, lambda: zeros) @ p["b"]

    graph = nnopt.graph(apply, TP, X)
    assert sizes(graph) == {"a:1": 8}
    for x in (X, -X):
        check_shrunk(graph, TP, jnp.where(x[0, 0] > 0, x, -x))


def test_dead_values_freeze_nothing_and_run():
    """Sorted columns that nobody uses, carried through a loop and stacked, are not computed."""

    def apply(p, x):
        def turn(state, row):
            h, unused = state
            return (jnp.tanh(h * p["c"][None]), jnp.sort(unused)), (jnp.sort(h), row)

        hidden = x @ p["a"]
        (h, _), _ = lax.scan(turn, (hidden, hidden), jnp.arange(3.0))
        jnp.sort(hidden)
        h, _ = lax.cond(x[0, 0] > 0, lambda h: (h, jnp.sort(h)), lambda h: (-h, h), h)
        h, _ = jax.checkpoint(lambda h: (jnp.tanh(h), jnp.cumsum(h, -1)))(h)
        return h @ p["b"]

    params = TP | {"c": drawn(8)}
    graph = nnopt.graph(apply, params, X)
    assert sizes(graph) == {"a:1": 8}
    check_shrunk(graph, params, X)
    keep = {"a:1": [1, 2, 6]}
    small = graph.shrink(params, keep)
    masked = jax.grad(lambda p: apply(p, X).sum())(graph.mask(params, keep))
    found = jax.grad(lambda p: small.apply(p, X).sum())(small.params)
    for path, wanted in graph.shrink(masked, keep).params.items():
        np.testing.assert_allclose(found[path], wanted, rtol=2e-5, atol=1e-6)


@jax.custom_vjp
def scaled_back(x, scale):
    return jnp.tanh(x)


scaled_back.defvjp(lambda x, s: (jnp.tanh(x), s), lambda s, slope: (slope * s, jnp.zeros_like(s)))


def test_operands_that_a_derivative_rule_alone_uses_are_cut():
    apply = lambda p, x: scaled_back(x @ p["a"], p["c"][None]) @ p["b"]  # noqa: E731
    params = TP | {"c": drawn(8)}
    graph = nnopt.graph(apply, params, X)
    assert graph.coupled["a:1"].members == (("a", 1), ("b", 0), ("c", 0))
    keep = {"a:1": [1, 2, 6]}
    small = graph.shrink(params, keep)
    masked = jax.grad(lambda p: apply(p, X).sum())(graph.mask(params, keep))
    found = jax.grad(lambda p: small.apply(p, X).sum())(small.params)
    for path, wanted in graph.shrink(masked, keep).params.items():
        np.testing.assert_allclose(found[path], wanted, rtol=2e-5, atol=1e-6)


def test_axes_are_known_by_identity_through_moves_of_weights():
    """The kernel that reads the units is known as such, transposed, cast and cut by a scan."""

    def apply(p, x):
        read = lax.optimization_barrier(p["b"].T.astype(jnp.bfloat16)).astype(jnp.float32).T
        turn = lambda h, layer: (jnp.tanh(h @ layer.T), None)  # noqa: E731
        return lax.scan(turn, x @ p["a"], p["c"])[0] @ read

    params = TP | {"c": drawn(2, 8, 8)}
    (found,) = nnopt.graph(apply, params, X).coupled.dimensions
    assert found.members == (("a", 1), ("b", 0), ("c", 1), ("c", 2))
    assert found.consumed == {("b", 0), ("c", 2)}
    assert not found.counted


@pytest.mark.parametrize("repeat", ["repeat", "tile", "broadcast"])
def test_axes_that_are_born_in_a_step_are_cut(repeat):
    """Copies of a unit go with it, and the same copy of all units goes as one."""
    repeats = {
        "repeat": lambda h: jnp.repeat(h, 3, -1),
        "tile": lambda h: jnp.tile(h, (1, 3)),
        "broadcast": lambda h: jnp.broadcast_to(h[:, None], (4, 3, 8)).reshape(4, 24),
    }
    apply = lambda p, x: repeats[repeat](x @ p["a"]) @ p["wide"]  # noqa: E731
    params = {"a": TP["a"], "wide": drawn(24, 3)}
    graph = nnopt.graph(apply, params, X)
    assert sorted(sizes(graph).values()) == [3, 8]
    small = check_shrunk(graph, params, X)
    assert small.widths == {"a": (5, 4), "wide": (4, 3)}


def test_reshapes_whose_bounds_cross():
    """(6, 4) as (8, 3): rows of one cut across rows of the other; only what fits both may go."""
    apply = lambda p, x: (  # noqa: E731
        jnp.sin((x @ p["a"]).reshape(4, 6, 4).reshape(4, 8, 3).sum(-1)) @ p["b"]
    )
    params = {"a": drawn(5, 24), "b": drawn(8, 2)}
    graph = nnopt.graph(apply, params, X)
    assert [each.elements for each in graph.coupled.dimensions]  # it is not torn
    check_shrunk(graph, params, X)


def test_an_operand_of_groups_meets_one_of_elements():
    """Two gates for eight features: a gate goes with its four, or the same one of each four."""
    apply = lambda p, x: ((x @ p["a"]) * jnp.repeat(x @ p["gate"], 4, -1)) @ p["b"]  # noqa: E731
    params = TP | {"gate": drawn(5, 2)}
    graph = nnopt.graph(apply, params, X)
    found = {each.size: places(each)["a", 1] for each in graph.coupled.dimensions}
    assert found == {
        2: [[0, 1, 2, 3], [4, 5, 6, 7]],
        4: [[0, 4], [1, 5], [2, 6], [3, 7]],
    }
    check_shrunk(graph, params, X)


swish_p = Primitive("swish_of_a_test")
swish_p.def_abstract_eval(lambda x: x)
swish_p.def_impl(lambda x: x * jax.nn.sigmoid(x))
mlir.register_lowering(
    swish_p, mlir.lower_fun(lambda x: x * jax.nn.sigmoid(x), multiple_results=False)
)


def test_a_primitive_that_nobody_knows_freezes_and_one_line_in_a_table_frees():
    apply = lambda p, x: swish_p.bind(x @ p["a"]) @ p["b"]  # noqa: E731
    graph = nnopt.graph(apply, TP, X)
    assert not graph.coupled.dimensions
    assert "no rule for swish_of_a_test at test_hard_programs.py:" in graph.coupled.frozen["a", 1]
    table = TABLE.with_rule(swish_p, functools.partial(elementwise_rule, absorbs=(0,)))
    outputs = lambda found: found  # noqa: E731
    given = trace(apply, (TP, X), {}, outputs, table)
    coupled = coupled_axes(given)
    assert coupled.names == ("a:1",)
    small = shrink(apply, given, coupled, TP, {"a:1": [0, 5]})
    p, at = jax.tree.map(np.asarray, TP), [0, 5]
    hidden = np.asarray(X) @ p["a"][:, at]
    wanted = (hidden / (1 + np.exp(-hidden))) @ p["b"][at]
    np.testing.assert_allclose(small.apply(small.params, X), wanted, rtol=2e-5, atol=2e-6)
