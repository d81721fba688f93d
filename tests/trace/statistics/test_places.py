"""Leaves that are cut, joined, repeated and padded on the way to a product."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import nnopt_jax as nnopt
from nnopt_jax.trace.control import is_inlined
from nnopt_jax.trace.jaxpr import bind, read
from nnopt_jax.trace.statistics.leaf_part import REPEATED
from nnopt_jax.trace.statistics.use_sites import float_leaves, follow_leaves
from nnopt_jax.trace.traced import trace
from tests.trace.zoo.models import MODELS

DRAW = np.random.default_rng(4)


def observe(function, params, x, names=("input_gram", "output_moments"), **settings):
    return nnopt.graph(function, params, x).observe(params, [x], names, **settings)


def whole(*shape):
    """Whole numbers, whose products and sums floats hold exactly."""
    return DRAW.integers(-4, 5, shape).astype(np.float32)


def gram(x):
    return x.T @ x


X = whole(7, 6)
PARAMS = {"a": whole(6, 4), "b": whole(6, 2), "c": whole(2, 4), "d": whole(4, 4)}


def test_kernels_side_by_side_have_outputs_of_their_own():
    params = {path: PARAMS[path] for path in "ab"}
    seen = observe(lambda p, x: x @ jnp.concatenate([p["b"], p["a"]], 1), params, X)
    for path in "ab":
        np.testing.assert_array_equal(seen["input_gram"][path], gram(X))
        mean = seen["output_moments"][path].mean
        np.testing.assert_allclose(mean[0], (X @ PARAMS[path]).mean(0), atol=1e-5)


def test_kernels_one_below_the_other_have_inputs_of_their_own():
    params = {path: PARAMS[path] for path in "cd"}
    seen = observe(lambda p, x: x @ jnp.concatenate([p["c"], p["d"]], 0), params, X)
    np.testing.assert_array_equal(seen["input_gram"]["c"], gram(X[:, :2]))
    np.testing.assert_array_equal(seen["input_gram"]["d"], gram(X[:, 2:]))
    reason = "its products are added to those of other entries"
    assert seen.lacking["output_moments"] == {"c": reason, "d": reason}
    assert [(use.contracted, use.partial) for use in seen.uses] == [((0,), ()), ((0,), ())]


def test_one_kernel_twice_in_an_array_has_two_uses():
    def apply(p, x):
        return x @ jnp.concatenate([p["c"], p["c"][::-1], p["c"]], 0)

    seen = observe(apply, PARAMS, X, where="c")
    uses = [seen.by_use["input_gram"]["c", number] for number in range(3)]
    own = [X[:, :2], X[:, 3:1:-1], X[:, 4:]]
    for found, x in zip(uses, own, strict=True):
        np.testing.assert_array_equal(found, gram(x))
    np.testing.assert_array_equal(seen["input_gram"]["c"], sum(map(gram, own)))


def test_recurrent_kernels_that_are_concatenated():
    """An LSTM's four gates in one product, and inputs beside the state."""
    params = {f"w{gate}": whole(5, 3) for gate in "ifgo"}
    x = whole(4, 2)

    def apply(p, x):
        kernel = jnp.concatenate([p[f"w{gate}"] for gate in "ifgo"], axis=-1)
        state = jnp.concatenate([x, jnp.ones((4, 3))], -1)
        return state @ kernel

    seen = observe(apply, params, x)
    both = np.concatenate([x, np.ones((4, 3), "f")], -1)
    for path, w in params.items():
        np.testing.assert_array_equal(seen["input_gram"][path], gram(both))
        mean = seen["output_moments"][path].mean
        np.testing.assert_allclose(mean[0], (both @ w).mean(0), atol=1e-5)


PLACES = {
    "padded": (lambda w: jnp.pad(w, ((2, 0), (1, 3))), slice(2, None)),
    "padded and cut": (lambda w: lax.pad(w, 0.0, ((3, -1, 0), (0, 0, 0))), slice(3, None)),
    "padded inside": (
        lambda w: jnp.pad(lax.pad(w, 0.0, ((0, 0, 1), (0, 0, 0)))[:5], ((1, 0), (0, 0))),
        slice(1, None, 2),
    ),
    "reversed in padding": (lambda w: jnp.pad(w[::-1], ((1, 1), (0, 0))), slice(4, 0, -1)),
}


@pytest.mark.parametrize("name", PLACES)
def test_padding_is_not_of_the_leaf(name):
    move, rows = PLACES[name]
    w = whole(4, 3)
    seen = observe(lambda p, x: x @ move(p["w"]), {"w": w}, X, "input_gram")
    (use,) = seen.uses
    mine = X[:, rows]
    count = len(seen["input_gram"]["w"])
    np.testing.assert_array_equal(seen["input_gram"]["w"], gram(mine[:, :count]))
    assert count == (4 if not use.partial else 3)
    assert use.contracted == (0,)


def test_strided_slices_and_tiles():
    w = whole(12, 4)
    seen = observe(lambda p, x: x @ jnp.tile(p["w"][1::2], (1, 3)), {"w": w}, X)
    np.testing.assert_array_equal(seen["input_gram"]["w"], gram(X))
    mean = seen["output_moments"]["w"].mean
    np.testing.assert_allclose(mean[0], (X @ w[1::2]).mean(0), atol=1e-5)
    assert seen["output_moments"]["w"].count == 3 * len(X)  # every output three times
    assert seen.uses[0].partial == (0,)


REASONS = {
    "tiled": (lambda w: jnp.tile(w, (3, 1)), "it is repeated along contracted axes"),
    "cut anew": (lambda w: w.reshape(8, 3)[:6], "reshape cuts across its axes"),
    "scaled by another": (lambda w: w.repeat(3, 0) * jnp.ones((6, 1)), "mul does not sum over it"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_cannot_be_measured_says_why_and_where(name):
    move, reason = REASONS[name]
    shape = (6, 4) if name == "cut anew" else (2, 4)
    seen = observe(lambda p, x: x @ move(p["w"]), {"w": whole(*shape)}, X)
    assert reason in seen.lacking["input_gram"]["w"]
    assert any("test_places.py" in use.line for use in seen.uses)


def test_a_kernel_times_another_leaf_is_not_moved():
    """Weight norm: what is contracted is neither of the two."""
    params = {"v": whole(6, 4), "g": whole(1, 4)}
    seen = observe(lambda p, x: x @ (p["v"] * p["g"]), params, X)
    assert seen.lacking["input_gram"] == dict.fromkeys("gv", "mul does not sum over it")


IDENTITIES = {
    "name": lambda w: checkpoint_name(w, "kernel"),
    "stop": lax.stop_gradient,
    "barrier": lambda w: lax.optimization_barrier((jnp.zeros(2), w))[1],
    "copy": jnp.copy,
    "precision": lambda w: lax.reduce_precision(w, 8, 12),
    "cast": lambda w: w.astype(jnp.bfloat16).astype(jnp.float32),
    "constrained": lambda w: lax.with_sharding_constraint(
        w, jax.sharding.SingleDeviceSharding(jax.devices()[0])
    ),
    "scaled": lambda w: -(w * 2.0) / jnp.float32(3.0),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identities_go_on(name):
    seen = observe(lambda p, x: x @ IDENTITIES[name](p["a"]), PARAMS, X, ("input_gram",), where="a")
    np.testing.assert_array_equal(seen["input_gram"]["a"], gram(X))


def test_layers_taken_by_number_and_layers_put_in_a_stack():
    params = {"layers": whole(3, 4, 4), "u": whole(4, 4), "v": whole(4, 4)}
    x = whole(5, 4)

    def apply(p, x):
        x = lax.fori_loop(0, 3, lambda i, x: x @ p["layers"][i] % 5, x)
        stack = jnp.concatenate([p["u"][None], p["v"][None]])
        return lax.scan(lambda x, w: (x @ w % 5, None), x, stack)[0]

    seen = observe(apply, params, x)
    inputs, now = [], x
    for w in (*params["layers"], params["u"], params["v"]):
        inputs.append(now)
        now = np.mod(now @ w, 5)
    np.testing.assert_array_equal(seen["input_gram"]["layers"], sum(map(gram, inputs[:3])))
    np.testing.assert_array_equal(seen["input_gram"]["u"], gram(inputs[3]))
    np.testing.assert_array_equal(seen["input_gram"]["v"], gram(inputs[4]))
    mean = seen["output_moments"]["v"].mean
    np.testing.assert_allclose(mean[0], (inputs[4] @ params["v"]).mean(0), atol=1e-5)
    (use,) = seen.uses.of("layers")
    assert (use.contracted, use.batch) == ((1,), (0,))


def test_different_parts_of_a_contracted_axis_are_not_joined():
    w, x = whole(6, 4), whole(7, 3)
    seen = observe(lambda p, x: (x @ p["w"][:3], x @ p["w"][3:]), {"w": w}, x, "input_gram")
    assert "different parts of axes (0,)" in seen.lacking["input_gram"]["w"]
    np.testing.assert_array_equal(seen.by_use["input_gram"]["w", 1], gram(x))


def test_kernels_of_convolutions_side_by_side():
    """Along outputs they have one input, along inputs each its own channels of the patches."""
    params = {"a": whole(3, 2, 4), "b": whole(3, 2, 6), "c": whole(3, 1, 10)}
    x = whole(2, 8, 3)

    def apply(p, x):
        kernel = jnp.concatenate([jnp.concatenate([p["a"], p["b"]], 2), p["c"]], 1)
        return lax.conv_general_dilated(
            x, kernel, (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC")
        )

    seen = observe(apply, params, x, ("input_gram", "input_moments"))
    rows = np.lib.stride_tricks.sliding_window_view(x, 3, 1).transpose(0, 1, 3, 2)
    for path, channels in (("a", slice(2)), ("b", slice(2)), ("c", slice(2, 3))):
        patches = rows[..., channels].reshape(12, -1)
        np.testing.assert_array_equal(seen["input_gram"][path], gram(patches))
        mean = seen["input_moments"][path].mean[0, :, 0]
        np.testing.assert_allclose(mean, x[..., channels].mean((0, 1)), atol=1e-6)
    assert seen["input_gram"]["a"] is seen["input_gram"]["b"]


def convolved(x, kernel, **groups):
    numbers = ("NHC", "HIO", "NHC")
    return lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=numbers, **groups)


def patches(x, size=3):
    """All windows of sequences, a row for each."""
    rows = np.lib.stride_tricks.sliding_window_view(x, size, 1).transpose(0, 1, 3, 2)
    return rows.reshape(-1, size * x.shape[-1])


def test_kernels_side_by_side_that_are_groups_have_the_channels_of_their_group():
    params, x = {"a": whole(3, 2, 4), "b": whole(3, 2, 4)}, whole(2, 8, 4)

    def apply(p, x):
        return convolved(x, jnp.concatenate([p["a"], p["b"]], 2), feature_group_count=2)

    names = ("input_gram", "input_moments", "output_moments")
    seen, out = observe(apply, params, x, names), np.asarray(apply(params, x))
    for number, path in enumerate(params):
        own, made = x[..., 2 * number :][..., :2], out[..., 4 * number :][..., :4]
        np.testing.assert_array_equal(seen["input_gram"][path], gram(patches(own)))
        mean = seen["input_moments"][path].mean
        np.testing.assert_allclose(mean[0, :, 0], own.mean((0, 1)), atol=1e-6)
        mean = seen["output_moments"][path].mean
        np.testing.assert_allclose(mean[0, 0], made.mean((0, 1)), atol=1e-4)


def test_groups_of_images_have_rows_of_their_own():
    w, x = whole(3, 3, 10), whole(4, 8, 3)
    apply = lambda p, x: convolved(x, p["w"], batch_group_count=2)  # noqa: E731 - one line
    seen = observe(apply, {"w": w}, x, ("input_gram", "input_moments", "output_moments"))
    assert [(use.contracted, use.reason) for use in seen.uses] == [((0, 1), "")]
    for group, own in enumerate((x[:2], x[2:])):
        np.testing.assert_array_equal(seen["input_gram"]["w"][group], gram(patches(own)))
        mean = seen["input_moments"]["w"].mean[0, :, 5 * group]
        np.testing.assert_allclose(mean, own.mean((0, 1)), atol=1e-6)
    mean = seen["output_moments"]["w"].mean[0, 0]
    out = np.asarray(apply({"w": w}, x))
    np.testing.assert_allclose(mean, out.mean((0, 1)), atol=1e-4)


def test_tables_one_below_the_other_count_their_own_rows():
    tables, tokens = {"a": whole(3, 2), "b": whole(4, 2)}, np.array([0, 5, 5, 2, 6], np.int32)

    def apply(p, tokens):
        return jnp.concatenate([p["a"], p["b"][::-1]])[tokens]

    seen = observe(apply, tables, tokens, "input_count")
    counts = np.bincount(tokens, minlength=7)
    np.testing.assert_array_equal(seen["input_count"]["a"][:, 0], counts[:3])
    np.testing.assert_array_equal(seen["input_count"]["b"][:, 0], counts[3:][::-1])


def test_experts_have_the_rows_of_their_group():
    """The sizes of groups are known when it runs; one is empty, and the last row is of none."""
    sizes, x, w = np.array([3, 0, 2], np.int32), whole(6, 4), whole(3, 4, 2)
    names = (
        "input_gram", "input_absmax", "input_range", "input_moments", "input_histogram",
        "output_moments",
    )  # fmt: skip

    def apply(p, batch):
        return lax.ragged_dot(batch["x"], p["w"], batch["sizes"])

    seen = observe(apply, {"w": w}, {"x": x, "sizes": sizes}, names)
    (use,) = seen.uses
    assert (use.contracted, use.batch, use.reason) == ((1,), (0,), "")
    for expert, rows in enumerate((x[:3], x[:0], x[3:5])):
        np.testing.assert_array_equal(seen["input_gram"]["w"][expert], gram(rows))
        assert seen.rows["w"][expert] == len(rows)
        assert seen["input_absmax"]["w"][expert] == np.abs(rows).max(initial=0)
        assert seen["input_histogram"]["w"].counts[expert].sum() == rows.size
        assert seen["input_histogram"]["w"].ignored[expert] == 0
        if len(rows):
            assert seen["input_range"]["w"].low[expert] == rows.min()
            mean, variance = (
                seen["input_moments"]["w"].mean, seen["input_moments"]["w"].variance
            )  # fmt: skip
            np.testing.assert_allclose(mean[expert, :, 0], rows.mean(0), atol=1e-6)
            np.testing.assert_allclose(variance[expert, :, 0], rows.var(0), atol=1e-5)
            out = rows @ w[expert]
            found = seen["output_moments"]["w"].mean[expert, 0]
            np.testing.assert_allclose(found, out.mean(0), atol=1e-5)


def computed(program, values, location=()):
    """The operands of every step that runs once, by its location."""
    known = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    known |= zip(program.jaxpr.invars, values, strict=True)
    found = {}
    for number, equation in enumerate(program.jaxpr.eqns):
        here = (*location, number)
        found[here] = [read(known, x) for x in equation.invars]
        if is_inlined(equation):
            found |= computed(equation.params["jaxpr"], found[here], (*here, 0))
        known |= zip(equation.outvars, bind(equation, found[here]), strict=True)
    return found


def check_place(found, leaf, part):
    """What an array holds at the places of a leaf is what the leaf has there."""
    found = found[np.ix_(*(axis.indices().ravel() for axis in part.axes))]
    factors = [factor for axis in part.axes for factor in axis.factors]
    grids = np.indices([factor.size for factor in factors])
    index = list(part.starts)
    for factor, grid in zip(factors, grids, strict=True):
        if factor.axis != REPEATED:
            index[factor.axis] = index[factor.axis] + factor.stride * grid
    shape = [factor.size for factor in factors]
    wanted = leaf[tuple(np.broadcast_to(i, shape) for i in index)].reshape(found.shape)
    scale = (found * wanted).sum() / (wanted * wanted).sum()  # by one number
    np.testing.assert_allclose(found, scale * wanted, rtol=2e-2, atol=1e-6)


def check_places(function, params, *args):
    given = trace(function, (params, *args), {})
    leaves = float_leaves(params)
    operands = computed(given.program, given.values)
    checked = 0
    for (*location, at, _), use in follow_leaves(given, leaves).uses.items():
        part, here = use.part, tuple(location)
        if here in operands and not part.levels and None not in part.starts:
            found = np.asarray(operands[here][at], np.float64)
            check_place(found, np.asarray(leaves[part.path], np.float64), part)
            checked += 1
    return checked


@pytest.mark.slow
def test_places_are_exact_in_the_zoo():
    checked = 0
    for name, make in MODELS.items():
        if name not in ("shard_map",):
            case = make()
            checked += check_places(case.apply, case.params, *case.args)
    assert checked > 200


def moved_at_random(rng, w):
    """A chain of movements, as a function."""
    steps = []
    shape = w.shape
    for _ in range(5):
        axis = int(rng.integers(len(shape)))
        kind = rng.choice(["turn", "cut", "back", "pad", "join", "reshape", "tile", "new"])
        if kind == "turn":
            order = tuple(map(int, rng.permutation(len(shape))))
            step = lambda x, order=order: x.transpose(order)  # noqa: E731 - one of many
        elif kind == "cut":
            start, stride = int(rng.integers(2)), int(rng.integers(1, 3))
            step = lambda x, a=axis, s=start, t=stride: lax.slice_in_dim(  # noqa: E731
                x, min(s, x.shape[a] - 1), None, t, a
            )
        elif kind == "back":
            step = lambda x, a=axis: lax.rev(x, (a,))  # noqa: E731
        elif kind == "pad":
            low, inner = (int(rng.integers(2)) for _ in range(2))
            step = lambda x, a=axis, low=low, inner=inner: lax.pad(  # noqa: E731
                x, 0.0, [(low, 1, inner) if i == a else (0, 0, 0) for i in range(x.ndim)]
            )
        elif kind == "join":
            step = lambda x, a=axis: jnp.concatenate([jnp.ones_like(x), x, x], a)  # noqa: E731
        elif kind == "tile":
            step = lambda x, a=axis: jnp.tile(  # noqa: E731
                x, [2 if i == a else 1 for i in range(x.ndim)]
            )
        elif kind == "new":
            step = lambda x, a=axis: jnp.repeat(jnp.expand_dims(x, a), 2, a)  # noqa: E731
        else:
            size = int(np.prod(shape))
            parts = [n for n in (2, 3, 4) if size % n == 0]
            if not parts:
                continue
            n = int(rng.choice(parts))
            sizes = (n, size // n) if rng.integers(2) else (size // n, n)
            step = lambda x, sizes=sizes: x.reshape(sizes)  # noqa: E731
        steps.append(step)
        shape = jax.eval_shape(step, jax.ShapeDtypeStruct(shape, "float32")).shape

    def move(w):
        for step in steps:
            w = step(w)
        return w

    return move


@pytest.mark.parametrize("seed", range(4))
def test_places_are_exact_after_movements_at_random(seed):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(4, 6)).astype("f")
    checked = 0
    for _ in range(5):
        move = moved_at_random(rng, w)
        checked += check_places(lambda p, move=move: jnp.sin(move(p["w"])), {"w": w})
    assert checked
