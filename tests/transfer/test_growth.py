"""Layers chosen, stacked, added; units added: to the bit where that is said, and with gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import nnopt_jax as nnopt
from nnopt_jax.errors import CompositionError, SelectionError, ShapeError, ValueRangeError
from nnopt_jax.transfer import (
    deepen,
    layer_map,
    select_layers,
    stack_layers,
    unstack_layers,
    widen,
)
from tests import tolerance

KEY = jax.random.key(0)
SHAPE = jax.ShapeDtypeStruct((2,), "float32")
DTYPES = [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)]


def close(apply, wide, params, x):
    """The wider parameters give the same, up to the order of their longer sums."""
    before = np.asarray(apply(params, x))
    within = tolerance.relative(apply, wide, x) * np.abs(before).max()
    np.testing.assert_allclose(apply(wide, x), before, rtol=0, atol=within)


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def layer(number):
    odd = np.array([0x7FC00001, 0x80000000, number], np.uint32).view(np.float32)
    rng = np.random.default_rng(number)
    return {
        "kernel": jnp.asarray(rng.normal(size=(2, 3)), jnp.bfloat16),
        "odd": jnp.asarray(odd),
        "inner": [jnp.int32(number), (jnp.asarray(number % 2 == 0),)],
    }


LAYOUTS = {
    "dict": ("layers_{index}", {f"layers_{i}": layer(i) for i in range(3)} | {"head": jnp.ones(1)}),
    "list": ("enc/blocks/{index}", {"enc": {"blocks": [layer(i) for i in range(3)]}}),
    "tuple": ("{index}", tuple(layer(i) for i in range(3))),
    "keys": ("enc/{index}", {"enc": {i: layer(i) for i in range(3)}}),
    "suffix": ("h{index}_x", {f"h{i}_x": layer(i) for i in range(3)} | {"h7": jnp.ones(1)}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layers_are_chosen_where_they_lie_apart(name):
    place, params = LAYOUTS[name]
    got = select_layers(params, place, (2, 0, 2, 1))
    expected = {
        path.replace(place.format(index=i), place.format(index=new), 1): leaf
        for new, i in enumerate((2, 0, 2, 1))
        for path, leaf in nnopt.tree.flatten(params).items()
        if path.startswith(place.format(index=i))
    }
    rest = {p: x for p, x in nnopt.tree.flatten(params).items() if p in ("head", "h7")}
    found = nnopt.tree.flatten(got)
    assert found.keys() == (expected | rest).keys()
    for path, leaf in (expected | rest).items():
        assert np.asarray(found[path]).tobytes() == np.asarray(leaf).tobytes()
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(got)]
    assert len(set(pointers)) == len(pointers)  # every one may be donated


@pytest.mark.parametrize(
    ("name", "into"), [("dict", "layers"), ("list", "enc/blocks"), ("suffix", "h")]
)
def test_stacking_and_back_keeps_every_bit(name, into):
    place, params = LAYOUTS[name]
    stacked = stack_layers(params, place, into)
    leaf = nnopt.tree.flatten(stacked)[f"{into}/kernel"]
    expected = np.stack([np.asarray(layer(i)["kernel"]) for i in range(3)])
    assert np.asarray(leaf).tobytes() == expected.tobytes()
    same(unstack_layers(stacked, into, place), params)


def test_layers_are_chosen_from_a_stack():
    params = {"blocks": {"w": jnp.arange(12.0).reshape(4, 3), "b": jnp.arange(4)}, "head": 1.0}
    got = select_layers(params, "blocks", layer_map(4, 2, "last"))
    np.testing.assert_array_equal(got["blocks"]["w"], np.arange(12.0).reshape(4, 3)[2:])
    np.testing.assert_array_equal(got["blocks"]["b"], [2, 3])
    assert got["head"] == 1.0


def test_packed_layers_stay_packed_where_they_lie_apart():
    tx = nnopt.quantization.uniform(8)
    params = {"layers": [{"kernel": jnp.full((2, 2), float(i))} for i in range(3)]}
    small = tx.pack(params, tx.init(params))
    got = select_layers(small, "layers/{index}", (0, 2))
    assert got["layers"][1]["kernel"] is small["layers"][2]["kernel"]
    stacked = stack_layers(got, "layers/{index}", "layers")["layers"]["kernel"]
    np.testing.assert_array_equal(stacked[:, 0, 0], [0, 2])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((6, 3, "first"), (0, 1, 2)),
        ((6, 3, "last"), (3, 4, 5)),
        ((12, 6, "even"), (0, 2, 4, 6, 8, 10)),  # DistilBERT's
        ((3, 6, "even"), (0, 0, 1, 1, 2, 2)),  # interpolation
        ((2, 3, "even"), (0, 0, 1)),
        ((12, 4, "ends"), (0, 4, 7, 11)),
        ((5, 1, "ends"), (0,)),
        ((6, 24, "stack"), tuple(range(6)) * 4),  # G_stack
        ((3, 4, "stack"), (0, 1, 2, 0)),
    ],
)
def test_maps_between_depths(arguments, expected):
    assert layer_map(*arguments) == expected


def test_maps_that_cannot_be_are_refused():
    with pytest.raises(ValueRangeError, match=r"target=4 is more than the 3 layers"):
        layer_map(3, 4, "first")
    with pytest.raises(ValueRangeError, match=r"(?s)source=0.*how='evn'.*Did you mean even"):
        layer_map(0, 4, "evn")


LAYERS = LAYOUTS["dict"][1]


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: select_layers(LAYERS, "layer_{index}", (0,)), SelectionError, "finds no layer.*"),
        (lambda: select_layers(LAYERS, "enc/{index}", (0,)), SelectionError, "'enc' is not in"),
        (
            lambda: select_layers({"a_1": 0.0}, "a_{index}", (0,)),
            SelectionError,
            "layers 1, not a run",
        ),
        (lambda: select_layers(LAYERS, "head/{index}", (0,)), SelectionError, "is one leaf"),
        (lambda: select_layers(LAYERS, "l_{index}/w", (0,)), ValueRangeError, "names no layers"),
        (lambda: select_layers(LAYERS, "layers_{index}", (0, 3)), ValueRangeError, "3 is not a"),
        (lambda: select_layers(LAYERS, "layers_{index}", ()), ValueRangeError, "chooses no layer"),
        (
            lambda: select_layers([{"a": 0.0}], "x{index}", (0,)),
            SelectionError,
            r"give '\{index\}'",
        ),
        (lambda: stack_layers(LAYERS, "layers_{index}", "head"), SelectionError, "is taken: head"),
        (lambda: stack_layers(LAYERS, "layers_{index}", "a/b"), SelectionError, "not lie beside"),
        (lambda: stack_layers(LAYERS, "layers_0", "b"), ValueRangeError, "layers='layers_0'; give"),
        (
            lambda: stack_layers({"b": {"0": LAYERS["head"], "norm": 1.0}}, "b/{index}", "b"),
            SelectionError,
            "holds norm beside the layers",
        ),
        (
            lambda: stack_layers([{"a": jnp.ones(2), "b": 0.0}, {"a": jnp.ones(3)}], "{index}", ""),
            ShapeError,
            r"(?s)b: is in one of layers 0 and 1.*a: is float32\[2\] in layer 0, float32\[3\] in",
        ),
        (
            lambda: unstack_layers({"l": {"a": jnp.ones(2), "b": jnp.ones(3)}}, "l", "l/{index}"),
            ShapeError,
            r"(?s)l/a: is float32\[2\].*l/b: is float32\[3\]; a stack",
        ),
    ],
)
def test_mistakes_are_told(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def blocks(count, dtype, width=8, hidden=16):
    rng = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / 3, dtype)

    return [
        {"scale": normal(width), "up": {"kernel": normal(width, hidden), "bias": normal(hidden)},
         "down": {"kernel": normal(hidden, width), "bias": normal(width)}}
        for _ in range(count)
    ]  # fmt: skip


def block(params, x):
    y = (x - x.mean(-1, keepdims=True)) * params["scale"][None]
    y = jax.nn.gelu(y @ params["up"]["kernel"] + params["up"]["bias"][None])
    return x + y @ params["down"]["kernel"] + params["down"]["bias"][None]


@jax.jit
def looped(params, x):
    for one in params["blocks"]:
        x = block(one, x)
    return x


@jax.jit
def scanned(params, x):
    return jax.lax.scan(lambda x, one: (block(one, x), None), x, params["blocks"])[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", ["stack", "even"])
def test_new_blocks_change_nothing(dtype, how):
    params = {"blocks": blocks(2, dtype)}
    x = jax.random.normal(KEY, (5, 8), dtype)
    deep = deepen(params, "blocks/{index}", layer_map(2, 4, how), zero="down/**")
    assert len(deep["blocks"]) == 4
    np.testing.assert_array_equal(looped(deep, x), looped(params, x))
    stacked = stack_layers(params, "blocks/{index}", "blocks")
    deep = deepen(stacked, "blocks", layer_map(2, 4, how), zero=["down/kernel", "down/bias"])
    assert deep["blocks"]["scale"].shape == (4, 8)
    np.testing.assert_array_equal(scanned(deep, x), scanned(stacked, x))


def test_new_blocks_learn():
    params = {"blocks": blocks(1, jnp.float32)}
    deep = deepen(params, "blocks/{index}", (0, 0), zero="down/**")
    x = jax.random.normal(KEY, (5, 8))
    new = jax.grad(lambda p: (looped(p, x) ** 2).mean())(deep)["blocks"][1]
    assert float(jnp.abs(new["down"]["kernel"]).max()) > 1e-3
    assert float(jnp.abs(new["up"]["kernel"]).max()) == 0  # until `down` has moved


def test_blocks_left_out_or_turned_are_refused():
    params = {"blocks": blocks(2, jnp.float32)}
    for sources in ((0, 0), (1, 0, 1)):
        with pytest.raises(ValueRangeError, match="all must come, in their order"):
            deepen(params, "blocks/{index}", sources, zero="down/**")
    with pytest.raises(SelectionError, match=r"'dwn/\*\*' matched no leaf. Nearest: down/"):
        deepen(params, "blocks/{index}", (0, 1, 1), zero="dwn/**")


def perceptron(dtype=jnp.float32):
    params = blocks(1, dtype, 12, 20)[0]
    return params | {"mean": jnp.full(20, 1.0, dtype)}


@jax.jit
def perceive(params, x):
    hidden = jax.nn.relu(x @ params["up"]["kernel"] + params["up"]["bias"][None]) ** 2
    return (hidden - params["mean"][None]) @ params["down"]["kernel"] + params["down"]["bias"][None]


UNITS = {"up/kernel": 1, "up/bias": 0, "mean": -1}, {"down/kernel": 0}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("incoming", ["copy", "random"])
def test_new_units_with_zero_weights_change_nothing(dtype, incoming):
    # Whole numbers, of which sums are exact in any order: that is the backend's, and may differ.
    params = jax.tree.map(lambda leaf: jnp.rint(4 * leaf), perceptron(dtype))
    x = jnp.rint(4 * jax.random.normal(KEY, (6, 12), dtype))
    wide = widen(params, *UNITS, 33, key=KEY, incoming=incoming)
    assert wide["up"]["kernel"].shape == (12, 33)
    assert {x.dtype for x in jax.tree.leaves(wide)} == {jnp.dtype(dtype)}
    np.testing.assert_array_equal(wide["up"]["kernel"][:, :20], params["up"]["kernel"])
    np.testing.assert_array_equal(perceive(wide, x), perceive(params, x))
    np.testing.assert_array_equal(wide["down"]["kernel"][20:], np.zeros((13, 12)))
    # New units differ from all old ones, and hear of it when they are heard.
    near = wide["up"]["kernel"][:, 20:, None] - params["up"]["kernel"][:, None]
    assert float(jnp.abs(near).max(0).min()) > 1e-3
    slope = jax.grad(lambda p: (perceive(p, x) ** 2).mean())(wide)["down"]["kernel"][20:]
    assert float(jnp.abs(slope).max(1).min()) > 1e-4


def test_new_units_share_what_their_originals_said():
    """Net2Wider: up to the order of sums, and the copies of a unit weigh together what it did."""
    params, x = perceptron(), jax.random.normal(KEY, (6, 12))
    wide = widen(params, *UNITS, 45, key=KEY, outgoing="split")
    close(perceive, wide, params, x)
    kernel, down = np.asarray(wide["up"]["kernel"]), np.asarray(wide["down"]["kernel"])
    for unit, column in enumerate(np.asarray(params["up"]["kernel"]).T):
        copies = (kernel.T == column).all(1)
        total = down[copies].sum(0)
        np.testing.assert_allclose(total, params["down"]["kernel"][unit], rtol=1e-6)
        assert np.ptp(down[copies], axis=0).max() == 0  # in equal parts
    slope = jax.grad(lambda p: (perceive(p, x) ** 2).mean())
    copy = 20 + int((kernel[:, 20:].T == kernel[:, 3]).all(1).argmax())
    np.testing.assert_array_equal(kernel[:, copy], kernel[:, 3])
    equal = slope(wide)["up"]["kernel"]
    np.testing.assert_allclose(equal[:, copy], equal[:, 3], atol=1e-7)  # why noise is offered
    noisy = slope(widen(params, *UNITS, 45, key=KEY, outgoing="split", noise=0.1))["up"]["kernel"]
    assert float(jnp.abs(noisy[:, copy] - noisy[:, 3]).max()) > 1e-5
    twice = widen(params, *UNITS, 40, key=KEY, outgoing="split")  # each has one copy: halves
    np.testing.assert_array_equal(twice["down"]["kernel"][:20] * 2, params["down"]["kernel"])


def test_channels_and_heads_are_units_too():
    """Channels of a convolution, and heads as an axis of their own."""
    params = {
        "conv": jax.random.normal(KEY, (3, 3, 2, 4)) / 4,
        "q": jax.random.normal(KEY, (4, 3, 5)) / 3,
        "out": jax.random.normal(KEY, (3, 5, 2)),
    }

    @jax.jit
    def apply(params, x):
        dims = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, params["conv"], (1, 1), "SAME", dimension_numbers=dims)
        heads = jnp.tanh(jnp.einsum("bhwd,dne->bhwne", x, params["q"]))
        return jnp.einsum("bhwne,ned->bhwd", heads, params["out"])

    x = jax.random.normal(KEY, (1, 4, 4, 2))
    wide = widen(params, {"conv": 3}, {"q": 0}, 6, key=KEY)
    wide = widen(wide, {"q": 1}, {"out": 0}, 4, key=KEY)
    assert wide["out"].shape == (4, 5, 2)
    close(apply, wide, params, x)


@pytest.mark.parametrize("outgoing", ["zero", "split"])
def test_units_are_added_over_axes_that_are_explicit(outgoing):
    mesh = jax.make_mesh((4, 2), ("a", "b"), (AxisType.Explicit, AxisType.Explicit))
    params, settings = perceptron(), {"key": KEY, "outgoing": outgoing, "noise": 0.0}
    spread = {
        name: jax.device_put(params[name]["kernel"], NamedSharding(mesh, PartitionSpec(*axes)))
        for name, axes in (("up", ("a", "b")), ("down", ("a",)))
    }
    axes = {"up": 1}, {"down": 0}
    found = widen(spread, *axes, 30, **settings)
    plain = widen(jax.device_get(spread), *axes, 30, **settings)
    jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_layers_are_unstacked_over_axes_that_are_explicit():
    mesh = jax.make_mesh((4, 2), ("a", "b"), (AxisType.Explicit, AxisType.Explicit))
    stack = np.arange(32, dtype=np.float32).reshape(4, 8)
    spread = jax.device_put(stack, NamedSharding(mesh, PartitionSpec("a", "b")))
    found = select_layers({"l": {"w": spread}}, "l", (2, 0))["l"]["w"]
    np.testing.assert_array_equal(found, stack[[2, 0]])


@pytest.mark.parametrize(
    "call",
    [
        lambda: stack_layers({"l": [{"w": SHAPE}]}, "l/{index}", "l"),
        lambda: unstack_layers({"l": {"w": SHAPE}}, "l", "l/{index}"),
    ],
)
def test_shapes_are_not_stacked(call):
    with pytest.raises(CompositionError, match=r"w: is a shape, float32\[2\]"):
        call()


def test_shapes_are_chosen_as_layers_are():
    assert select_layers({"l": [{"w": SHAPE}]}, "l/{index}", (0, 0)) == {"l": [{"w": SHAPE}] * 2}


def test_packed_leaves_are_spread_out_only_where_they_grow():
    tx = nnopt.quantization.uniform(8, where="re:kernel")
    params = perceptron()
    small = tx.pack(params, tx.init(params))
    wide = widen(small, {"up/kernel": 1, "up/bias": 0, "mean": 0}, {"down/kernel": 0}, 24, key=KEY)
    dense = nnopt.materialize(small)["up"]["kernel"]
    np.testing.assert_array_equal(wide["up"]["kernel"][:, :20], dense)
    one = widen({"a": small["up"], "v": params["up"], "w": params["down"]},
                {"v/kernel": 1, "v/bias": 0}, {"w/kernel": 0}, 24, key=KEY)  # fmt: skip
    assert one["a"]["kernel"] is small["up"]["kernel"]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"produced": {"up/kernl": 1}}, SelectionError, "'up/kernl' is not a leaf. Did you"),
        ({"consumed": {}}, SelectionError, "consumed names no leaf"),
        ({"produced": {"up/kernel": 2}}, ShapeError, r"float32\[12,20\] and has no axis 2"),
        ({"produced": {"up/kernel": 0}}, ShapeError, "up/kernel has 12 along axis 0; down/kernel"),
        ({"width": 20}, ValueRangeError, "width=20 is not above the 20 units"),
        ({"outgoing": "split", "incoming": "random"}, ValueRangeError, "give outgoing='zero'"),
        ({"key": 0}, ValueRangeError, "key is the int 0"),
        ({"noise": -1.0}, ValueRangeError, "noise=-1.0"),
        (
            {"params": jax.tree.map(lambda x: x.astype("complex64"), perceptron()),
             "outgoing": "split"},
            ValueRangeError,
            "divides weights, and down/kernel is complex64",
        ),
        (
            {"params": jax.tree.map(lambda x: x.astype("int32"), perceptron()),
             "outgoing": "split"},
            ValueRangeError,
            "down/kernel is int32",
        ),
        ({"params": jax.eval_shape(perceptron)}, CompositionError, "down/kernel: is a shape"),
    ],
)  # fmt: skip
def test_mistakes_of_widening_are_told(change, kind, message):
    produced, consumed = UNITS
    given = {"produced": produced, "consumed": consumed, "width": 24, "key": KEY} | change
    with pytest.raises(kind, match=message):
        widen(**{"params": perceptron()} | given)
