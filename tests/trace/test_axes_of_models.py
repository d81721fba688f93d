"""Axes of the zoo's weights, against tables derived by hand from what the models compute."""

from __future__ import annotations

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import nnopt_jax as nnopt
from nnopt_jax import Axes
from tests.trace.roles import HEADS_IN, HEADS_OUT, HWIO, IN_OUT, LAYERS, LOOKED_UP, OIHW, OUT_IN
from tests.trace.zoo.models import MODELS


def flax(axes):
    return {f"params/{path}": each for path, each in axes.items()}


def attention(name, out="out"):
    """Flax's four kernels of an attention."""
    inward = {f"{name}/{part}/kernel": HEADS_OUT for part in ("query", "key", "value")}
    return inward | {f"{name}/{out}/kernel": HEADS_IN}


def each(axes, *paths):
    return dict.fromkeys(paths, axes)


# By model: the axes of each weight, and which of them the output comes from with no other product
# in between. Flax numbers layers as they are written: of `Dense(4)(Dense(8)(x))` the outer is 0.
TABLES = {
    "linen_dense": (
        flax(each(IN_OUT, "Dense_0/kernel", "Dense_1/kernel", "Dense_2/kernel")),
        {"params/Dense_0/kernel"},
    ),
    "linen_dense_general": (
        flax({"DenseGeneral_0/kernel": HEADS_OUT, "DenseGeneral_1/kernel": HEADS_IN}),
        {"params/DenseGeneral_1/kernel"},
    ),
    # By channels, the kernel is (3, 3, 1, 8): one input each, the axis of features is an output.
    "linen_conv": (
        flax({**each(HWIO, *(f"Conv_{i}/kernel" for i in range(3))), "Dense_0/kernel": IN_OUT}),
        {"params/Dense_0/kernel"},
    ),
    "linen_conv_transpose": (
        flax(each(HWIO, "ConvTranspose_0/kernel", "Conv_0/kernel")),
        {"params/Conv_0/kernel"},
    ),
    # The running statistics come out, too; the product before them is not the last one.
    "linen_norms": (
        flax({**each(HWIO, "Conv_0/kernel", "Conv_1/kernel"), "Dense_0/kernel": IN_OUT}),
        {"params/Dense_0/kernel"},
    ),
    # (tokens, features): rows are looked up, the head sums over features. The only weight is kept.
    "linen_tied_embed": (flax({"Embed_0/embedding": OUT_IN}), set()),
    "linen_attention": (
        flax({
            **attention("MultiHeadDotProductAttention_0"),
            **each(IN_OUT, "Dense_0/kernel", "Dense_1/kernel"),
        }),
        {"params/Dense_0/kernel"},
    ),
    # Four gates, whose kernels the cell puts side by side.
    "linen_lstm": (
        flax({
            **each(IN_OUT, *(f"OptimizedLSTMCell_0/{a}{b}/kernel" for a in "ih" for b in "ifgo")),
            "Dense_0/kernel": IN_OUT,
        }),
        {"params/Dense_0/kernel"},
    ),
    "linen_gru": (
        flax({
            **each(IN_OUT, *(f"GRUCell_0/{a}{b}/kernel" for a in "ih" for b in "rzn")),
            "Dense_0/kernel": IN_OUT,
        }),
        {"params/Dense_0/kernel"},
    ),
    "linen_scan": (
        flax({
            **each(LAYERS, *(f"ScanCheckpointLayer_0/Dense_{i}/kernel" for i in range(2))),
            "Dense_0/kernel": IN_OUT,
        }),
        {"params/Dense_0/kernel"},
    ),
    # All members take the same input: their number is one more output axis.
    "linen_vmap": (flax({"VmapDense_0/kernel": Axes(1, (0, 2))}), set()),
    # The scale of a column is multiplied into the kernel, and sums nothing.
    "linen_weight_norm": (
        flax(each(IN_OUT, "Dense_0/kernel", "Dense_1/kernel")),
        {"params/Dense_0/kernel"},
    ),
    "nnx_linear": (
        {**each(IN_OUT, "up/kernel", "down/kernel"), "heads/kernel": HEADS_IN},
        {"heads/kernel"},
    ),
    "nnx_conv": (each(HWIO, "first/kernel", "apart/kernel", "back/kernel"), {"back/kernel"}),
    "nnx_transformer": (
        {
            **attention("attention"), **each(IN_OUT, "up/kernel", "down/kernel"),
            "embed/embedding": OUT_IN,
        },
        {"embed/embedding"},
    ),
    "nnx_lstm": (
        {
            **each(IN_OUT, *(f"rnn/cell/{gate}/kernel" for gate in
                             ("ii", "if_", "ig", "io", "hi", "hf", "hg", "ho"))),
            "head/kernel": IN_OUT,
        },
        {"head/kernel"},
    ),
    "nnx_gru": (  # the three gates lie in one kernel (in, 3 h)
        each(IN_OUT, "rnn/cell/dense_i/kernel", "rnn/cell/dense_h/kernel", "head/kernel"),
        {"head/kernel"},
    ),
    "nnx_scan": ({"layers/kernel": LAYERS, "head/kernel": IN_OUT}, {"head/kernel"}),
    "nnx_vmap": ({"members/kernel": Axes(1, (0, 2))}, set()),
    "equinox_mlp": (each(OUT_IN, *(f"layers/{i}/weight" for i in range(3))), {"layers/2/weight"}),
    "equinox_conv": (
        {**each(OIHW, "first/weight", "apart/weight"), "head/weight": OUT_IN},
        {"head/weight"},
    ),
    "equinox_attention": (
        each(OUT_IN, *(f"attention/{n}_proj/weight" for n in ("query", "key", "value", "output"))),
        {"attention/output_proj/weight"},
    ),
    "haiku_mlp": (each(IN_OUT, *(f"mlp/~/linear_{i}/w" for i in range(3))), {"mlp/~/linear_2/w"}),
    "haiku_attention": (
        {
            **each(IN_OUT, *(f"multi_head_attention/{n}/w" for n in
                             ("query", "key", "value", "linear"))),
            "linear/w": IN_OUT,
        },
        {"linear/w"},
    ),
    "haiku_conv": ({"conv2_d/w": HWIO, "linear/w": IN_OUT}, {"linear/w"}),
    # `a` is multiplied from both sides, and is last; `e` is added.
    "operators": (each(IN_OUT, "b", "c"), set()),
    # x @ a and, in its gradient, g @ a.T; b @ c sums over the columns of b, x @ b over its rows.
    "programs": (each(IN_OUT, "c"), set()),
    "shard_map": (each(IN_OUT, "a", "b"), {"b"}),
    "llama": (
        {"embed": LOOKED_UP, **each(IN_OUT, "q", "k", "v", "o", "gate", "up", "down", "head")},
        {"embed", "head"},
    ),
    "decoding": (
        {"embed": LOOKED_UP, **each(IN_OUT, "q", "k", "v", "o", "gate", "up", "down", "head")},
        {"embed", "head"},
    ),
    "resnet": (
        {**each(HWIO, "stem", "a", "b", "c", "d", "skip"), "head": IN_OUT},
        {"head"},
    ),
    "unet": (each(HWIO, "down", "low", "up", "out"), {"out"}),  # `out` is (1, 1, 4, 1)
    "vision": (  # the class and the positions are put beside, or added to, what varies
        {"patch": HWIO, **each(IN_OUT, "qkv", "o", "up", "down", "head")},
        {"head"},
    ),
    "mixer": (each(IN_OUT, "mix", "back", "up", "down", "head"), {"head"}),
    # bi,eij->ebj: each expert has the same input. ebj,ejk,be->bk: sums over experts, too.
    "experts": (
        {"route": IN_OUT, "up": Axes(1, (0, 2)), "down": HEADS_IN},
        {"down"},
    ),
    # Each layer is a weight of its own; both weights that lie side by side are last.
    "layers_by_index": ({"layers": LAYERS, **each(IN_OUT, "left", "right")}, {"left", "right"}),
}  # fmt: skip


def floats(params):
    return {
        path for path, leaf in nnopt.tree.flatten(params).items()
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_models_of_the_zoo(name):
    case, (expected, left_out) = MODELS[name](), TABLES[name]
    axes = nnopt.graph(case.apply, case.params, *case.args).axes
    assert dict(axes) == expected
    assert set(axes.left_out) == left_out
    assert set(axes.weights) == set(expected) - left_out
    assert set(axes.unknown) == floats(case.params) - set(expected)
    for path, each_axes in axes.items():
        assert each_axes.misfit(nnopt.tree.flatten(case.params)[path].shape) is None


def test_reasons_of_the_zoo():
    expected = {
        ("vision", "class"): "concatenate does not sum over it",
        ("vision", "position"): "add does not sum over it",
        ("llama", "scale"): "mul does not sum over it",
        ("operators", "e"): "add does not sum over it",
        ("linen_weight_norm", "params/WeightNorm_0/Dense_1/kernel/scale"):
            "dot_general does not sum over it",
    }  # fmt: skip
    for name in dict.fromkeys(name for name, _ in expected):
        case = MODELS[name]()
        unknown = nnopt.graph(case.apply, case.params, *case.args).axes.unknown
        for path in (path for other, path in expected if other == name):
            assert unknown[path] == expected[name, path]


def shaped(shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_gates_of_other_libraries():
    """Equinox multiplies from the left; haiku has one kernel for inputs and states."""
    for cell in (eqx.nn.LSTMCell(4, 8, key=jax.random.key(0)),
                 eqx.nn.GRUCell(4, 8, key=jax.random.key(0))):  # fmt: skip
        lstm = isinstance(cell, eqx.nn.LSTMCell)

        def run(cell, xs, lstm=lstm):
            first = (jnp.zeros(8), jnp.zeros(8)) if lstm else jnp.zeros(8)
            return jax.lax.scan(lambda s, x: (cell(x, s), None), first, xs)[0]

        table = nnopt.graph(run, cell, shaped((5, 4))).axes
        assert dict(table) == {"weight_ih": OUT_IN, "weight_hh": OUT_IN}

    net = hk.without_apply_rng(
        hk.transform(lambda x: hk.dynamic_unroll(hk.LSTM(8), x, hk.LSTM(8).initial_state(2))[0])
    )
    x = shaped((5, 2, 4))
    table = nnopt.graph(net.apply, jax.eval_shape(net.init, jax.random.key(0), x), x).axes
    assert dict(table) == {"lstm/linear/w": IN_OUT}


def test_annotations_of_flax_change_nothing():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
            x = nn.relu(nn.Dense(8, kernel_init=init, name="up")(x))
            x = nn.with_logical_constraint(x, ("batch", "out"))
            x = jax.lax.with_sharding_constraint(x, named)
            return nn.Dense(2, kernel_init=init, name="down")(x)

    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    named = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", "model"))
    x, rules = jnp.ones((4, 6)), [("batch", "data"), ("out", "model"), ("in", None)]
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        boxed = jax.jit(Net().init)(jax.random.key(0), x)
        for params in (boxed, nn.unbox(boxed)):
            table = nnopt.graph(Net().apply, params, x).axes
            assert sorted(table.values(), key=repr) == [IN_OUT, IN_OUT]
            assert len(table.weights) == 1
            assert "up" in table.weights[0]
            assert sum("kernel" in path for path in table) == 2
