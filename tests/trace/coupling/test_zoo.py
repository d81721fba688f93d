"""Models of every kind: half of every dimension gone, and the same as with zeros in its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

import nnopt_jax as nnopt


def drawn(*shape, seed=0):
    rng = np.random.default_rng(seed + sum(shape))
    return rng.normal(size=shape, scale=0.4 if len(shape) > 1 else 1.0).astype(np.float32)


def filled(shapes, positive=("var",)):
    """Random parameters of these shapes: no compile, and no zeros that would hide mistakes."""
    flat, tree = jax.tree_util.tree_flatten_with_path(shapes)
    leaves = [
        np.abs(x) + 0.5 if any(word in jax.tree_util.keystr(path) for word in positive) else x
        for at, (path, leaf) in enumerate(flat)
        for x in [drawn(*leaf.shape, seed=at)]
    ]
    return jax.tree.unflatten(tree, leaves)


def tokens(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 30, shape).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Model:
    """A function, inputs it is read at, others it is run at, and the dimensions by inspection."""

    apply: Callable[..., Any]
    params: Any
    read: tuple[Any, ...]
    run: tuple[Any, ...]
    sizes: dict[str, int]
    fixed_order: tuple[str, ...] = ()


def linen(module, read, run, sizes):
    params = filled(jax.eval_shape(module.init, jax.random.key(0), *read))
    return Model(module.apply, params, read, run, sizes)


def mlp():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(6)(x))
            x = nn.sigmoid(nn.Dense(8)(x))
            return nn.Dense(3)(x)

    found = {"params/Dense_0/kernel:1": 6, "params/Dense_1/kernel:1": 8}
    return linen(Net(), (drawn(2, 5),), (drawn(3, 5),), found)


def lenet():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x))
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2), padding="SAME")
            x = nn.avg_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
            x = nn.relu(nn.Dense(10)(x.reshape(x.shape[0], -1)))
            return nn.Dense(3)(x)

    found = {
        "params/Conv_0/kernel:3": 4,
        "params/Conv_1/kernel:3": 6,
        "params/Dense_0/kernel:1": 10,
    }
    return linen(Net(), (drawn(2, 8, 8, 2),), (drawn(1, 8, 8, 2),), found)


def resnet():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(8, (3, 3))(x)
            y = nn.BatchNorm(use_running_average=True)(nn.Conv(6, (3, 3))(x))
            x = nn.relu(x + nn.Conv(8, (3, 3))(nn.relu(y)))
            deep = nn.Conv(8, (3, 3), feature_group_count=8)(x)
            x = jnp.concatenate([x, nn.Conv(4, (1, 1))(deep)], -1)
            return nn.Dense(3)(x.mean((1, 2)))

    found = {
        "params/Conv_0/kernel:3": 8,  # the stream, and through it the convolution by channels
        "params/Conv_1/kernel:3": 6,
        "params/Conv_4/kernel:3": 4,
    }
    return linen(Net(), (drawn(2, 6, 6, 2),), (drawn(1, 7, 5, 2),), found)


def grouped():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(8, (1, 1))(x)
            x = nn.GroupNorm(4)(nn.Conv(12, (3, 3), feature_group_count=4)(x))
            return nn.Dense(3)(nn.relu(nn.Conv(6, (1, 1))(x)).mean((1, 2)))

    found = {
        "params/Conv_0/kernel:3": 4,  # whole groups
        "params/Conv_0/kernel:3#2": 2,  # the same input channel of every group
        "params/Conv_1/kernel:3": 3,  # the same output channel of every group
        "params/Conv_2/kernel:3": 6,
    }
    return linen(Net(), (drawn(2, 4, 4, 2),), (drawn(3, 5, 5, 2),), found)


class Block(nn.Module):
    width: int
    heads: int

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=self.heads)(y, y)
        y = nn.gelu(nn.Dense(10)(nn.LayerNorm()(x)))
        return x + nn.Dense(self.width)(y)


def transformer(tied: bool):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, ids):
            embed = nn.Embed(30, 8)
            x = Block(8, 2)(embed(ids))
            return embed.attend(x) if tied else nn.Dense(5)(nn.LayerNorm()(x))

    attention = "params/Block_0/MultiHeadDotProductAttention_0"
    found = {
        "params/Block_0/Dense_0/kernel:1": 10,
        f"{attention}/out/kernel:2": 8,  # the residual stream
        f"{attention}/key/kernel:1": 2,  # heads
        f"{attention}/key/kernel:2": 4,  # dimensions of queries and keys
        f"{attention}/value/kernel:2": 4,  # dimensions of values
    }
    return linen(Net(), (tokens(2, 5),), (tokens(1, 7),), found)


def stack():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            y = nn.relu(nn.Dense(8)(x))
            return x + nn.Dense(6)(y), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            layers = nn.scan(
                nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            x, _ = layers(name="layers")(nn.Dense(6)(x), None)
            return nn.Dense(2)(x)

    found = {"params/layers/Dense_1/kernel:2": 6, "params/layers/Dense_0/kernel:2": 8}
    return linen(Net(), (drawn(2, 5),), (drawn(3, 5),), found)


def recurrent(cell, name):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.RNN(cell(6))(x)[:, -1])

    found = {f"params/{cell.__name__}_0/{name}": 6}
    return linen(Net(), (drawn(2, 4, 3),), (drawn(1, 6, 3),), found)


def fused():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(12)(x)
            q, k, v = (
                part.reshape(*part.shape[:-1], 2, 6)
                for part in jnp.split(nn.Dense(36, name="qkv")(x), 3, -1)
            )
            weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
            y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
            x = x + nn.Dense(12, name="out")(y)
            a, b = jnp.split(nn.Dense(20, name="glu")(nn.LayerNorm()(x)), 2, -1)
            return nn.Dense(3)(nn.Dense(12, name="down")(nn.sigmoid(a) * b) + x)

    found = {
        "params/Dense_0/kernel:1": 12,
        "params/glu/kernel:1": 10,  # a column of each half
        "params/qkv/kernel:1": 2,  # heads
        "params/qkv/kernel:1#2": 6,  # dimensions of values
        "params/qkv/kernel:1#3": 6,  # dimensions of queries and keys
    }
    return linen(Net(), (drawn(2, 4, 5),), (drawn(1, 3, 5),), found)


def llama():
    heads, pairs, size, width, hidden = 4, 2, 4, 10, 12

    def norm(x, scale):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale[None, None]

    def turned(x):
        angle = 1 / 100 ** (jnp.arange(0, size, 2) / size)
        angle = jnp.arange(x.shape[1])[:, None] * angle[None]
        angle = jnp.concatenate([angle, angle], -1)[None, :, None]
        a, b = jnp.split(x, 2, -1)
        return x * jnp.cos(angle) + jnp.concatenate([-b, a], -1) * jnp.sin(angle)

    def apply(p, ids):
        x = p["embed"][ids]
        y = norm(x, p["norm1"])
        q = turned((y @ p["q"]).reshape(*ids.shape, heads, size))
        k = turned((y @ p["k"]).reshape(*ids.shape, pairs, size))
        v = (y @ p["v"]).reshape(*ids.shape, pairs, size)
        k, v = (jnp.repeat(each, heads // pairs, 2) for each in (k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / size**0.5
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
        weights = jax.nn.softmax(jnp.where(seen, scores, -1e9))
        x = x + jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*ids.shape, -1) @ p["o"]
        y = norm(x, p["norm2"])
        x = x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
        return norm(x, p["norm3"]) @ p["embed"].T

    params = {
        "embed": drawn(30, width), "q": drawn(width, heads * size), "k": drawn(width, pairs * size),
        "v": drawn(width, pairs * size, seed=1), "o": drawn(heads * size, width, seed=2),
        "gate": drawn(width, hidden), "up": drawn(width, hidden, seed=3),
        "down": drawn(hidden, width), **{f"norm{i}": drawn(width, seed=i) for i in (1, 2, 3)},
    }  # fmt: skip
    found = {
        "gate:1": hidden,
        "down:1": width,
        "k:1": pairs,  # a key and value head with its queries
        "k:1#2": size // 2,  # a pair of dimensions that turn together, in all heads
        "q:1": heads // pairs,  # the same query head of every key head
        "v:1": size,  # dimensions of values
    }
    return Model(apply, params, (tokens(2, 5),), (tokens(1, 6),), found, ("k:1#2",))


def unet():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            fine = nn.relu(nn.Conv(4, (3, 3))(x))
            coarse = nn.relu(nn.Conv(6, (3, 3), strides=2)(fine))
            up = nn.ConvTranspose(5, (2, 2), strides=(2, 2))(coarse)
            x = nn.relu(nn.Conv(7, (3, 3))(jnp.concatenate([up, fine], -1)))
            return nn.Conv(1, (1, 1))(x)

    found = {
        "params/ConvTranspose_0/kernel:3": 5,
        "params/Conv_1/kernel:3": 6,
        "params/Conv_0/kernel:3": 4,
        "params/Conv_2/kernel:3": 7,
    }
    return linen(Net(), (drawn(1, 4, 4, 2),), (drawn(2, 6, 4, 2),), found)


def vit():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(8, (2, 2), strides=2)(x)
            x = x.reshape(x.shape[0], -1, 8)
            first = self.param("class", nn.initializers.ones, (1, 1, 8))
            x = jnp.concatenate([jnp.tile(first, (x.shape[0], 1, 1)), x], 1)
            place = self.param("place", nn.initializers.ones, (1, 12, 8))
            x = Block(8, 2)(x + place[:, : x.shape[1]])
            return nn.Dense(3)(nn.LayerNorm()(x)[:, 0])

    attention = "params/Block_0/MultiHeadDotProductAttention_0"
    found = {
        "params/Block_0/Dense_0/kernel:1": 10,
        "params/Conv_0/kernel:3": 8,
        f"{attention}/key/kernel:1": 2,
        f"{attention}/key/kernel:2": 4,
        f"{attention}/value/kernel:2": 4,
    }
    return linen(Net(), (drawn(2, 4, 4, 2),), (drawn(1, 4, 6, 2),), found)


def mixer():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(8)(x)
            y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
            y = nn.Dense(x.shape[1], name="over")(nn.gelu(nn.Dense(6, name="tokens")(y)))
            x = x + jnp.swapaxes(y, 1, 2)
            y = nn.gelu(nn.Dense(10, name="channels")(nn.LayerNorm()(x)))
            x = x + nn.Dense(8, name="down")(y)
            return nn.Dense(3)(x.mean(1))

    found = {
        "params/Dense_0/kernel:1": 8,
        "params/tokens/kernel:1": 6,
        "params/channels/kernel:1": 10,
    }
    return linen(Net(), (drawn(2, 5, 4),), (drawn(3, 5, 4),), found)


def experts():
    def apply(p, x):
        gates = jax.nn.softmax(x @ p["gate"])
        best = jax.lax.top_k(gates, 2)[0][..., -1:]
        gates = jnp.where(gates >= best, gates, 0.0)
        hidden = jax.nn.relu(jnp.einsum("bd,edf->bef", x @ p["in"], p["up"]))
        out = jnp.einsum("bef,efd->bed", hidden, p["down"])
        return jnp.einsum("bed,be->bd", out, gates) @ p["out"]

    params = {
        "gate": drawn(5, 4), "in": drawn(5, 6), "up": drawn(4, 6, 8), "down": drawn(4, 8, 7),
        "out": drawn(7, 3),
    }  # fmt: skip
    found = {"up:2": 8, "down:2": 7, "in:1": 6}
    return Model(apply, params, (drawn(2, 5),), (drawn(4, 5),), found)


def nnx_attention():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(30, 8, rngs=rngs)
            self.attend = nnx.MultiHeadAttention(
                num_heads=2, in_features=8, decode=False, rngs=rngs
            )
            self.up = nnx.Linear(8, 6, rngs=rngs)
            self.head = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, ids):
            x = self.embed(ids)
            return self.head(nnx.relu(self.up(x + self.attend(x))))

    net = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    graph, state = nnx.split(net)

    def apply(pure, ids):
        new = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(new, pure)
        return nnx.merge(graph, new)(ids)

    found = {
        "attend/out/kernel:2": 8,
        "attend/key/kernel:1": 2,
        "attend/key/kernel:2": 4,
        "attend/value/kernel:2": 4,
        "up/kernel:1": 6,
    }
    params = filled(nnx.to_pure_dict(state))
    return Model(apply, params, (tokens(2, 4),), (tokens(1, 5),), found)


def equinox():
    shapes = eqx.filter_eval_shape(eqx.nn.MLP, 4, 3, 6, 2, key=jax.random.key(0))
    arrays, rest = eqx.partition(shapes, lambda x: hasattr(x, "shape"))

    def apply(arrays, x):
        return jax.vmap(eqx.combine(arrays, rest))(x)

    found = {"layers/0/weight:0": 6, "layers/1/weight:0": 6}
    return Model(apply, filled(arrays), (drawn(2, 4),), (drawn(3, 4),), found)


def haiku():
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([6, 8, 3])(x)))
    params = filled(jax.eval_shape(net.init, jax.random.key(0), drawn(2, 4)))
    found = {"mlp/~/linear_0/w:1": 6, "mlp/~/linear_1/w:1": 8}
    return Model(net.apply, params, (drawn(2, 4),), (drawn(3, 4),), found)


def centered():
    """Variances of differences: removed features are not zero there, and count."""

    def apply(p, x):
        x = x @ p["in"]
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return (x * p["scale"][None]) @ p["out"]

    params = {"in": drawn(4, 8), "scale": drawn(8), "out": drawn(8, 3)}
    return Model(apply, params, (drawn(2, 4),), (drawn(3, 4),), {"in:1": 8})


ZOO = {
    "mlp": mlp,
    "lenet": lenet,
    "resnet": resnet,
    "grouped": grouped,
    "transformer": lambda: transformer(False),
    "tied": lambda: transformer(True),
    "stack": stack,
    "lstm": lambda: recurrent(nn.OptimizedLSTMCell, "hf/kernel:1"),
    "gru": lambda: recurrent(nn.GRUCell, "hn/kernel:1"),
    "fused": fused,
    "llama": llama,
    "unet": unet,
    "vit": vit,
    "mixer": mixer,
    "experts": experts,
    "nnx": nnx_attention,
    "equinox": equinox,
    "haiku": haiku,
    "centered": centered,
}


# Of kinds that are above; each compiles for seconds.
LONG = {"tied", "gru", "unet", "vit", "resnet"}
NAMES = [pytest.param(each, marks=[pytest.mark.slow] * (each in LONG)) for each in ZOO]


def far(found, wanted):
    """The largest difference, of the largest number."""
    return float(jnp.abs(found - wanted).max() / jnp.abs(wanted).max())


def unheard(params, keep, dimensions):
    """Units that go are anything, and what reads them is zero."""
    leaves = dict(nnopt.tree.flatten(params))
    for to, consumes in ((0.7, False), (0.0, True)):
        for each in dimensions:
            gone = np.setdiff1d(np.arange(each.size), keep[each.name])
            for (path, axis), at in each.indices.items():
                if ((path, axis) in each.consumed) is consumes:
                    where = (*(slice(None),) * axis, at[gone].ravel())
                    leaves[path] = jnp.asarray(leaves[path]).at[where].set(to)
    return nnopt.tree.unflatten(params, leaves)


@pytest.mark.parametrize("name", NAMES)
def test_half_of_every_dimension(name):
    model = ZOO[name]()
    abstract = jax.eval_shape(lambda *args: args, model.params, *model.read)
    graph = nnopt.graph(model.apply, *abstract)
    assert {each.name: each.size for each in graph.coupled.dimensions} == model.sizes
    ordered = tuple(each.name for each in graph.coupled.dimensions if not each.exchangeable)
    assert ordered == model.fixed_order

    rng = np.random.default_rng(0)
    keep = {each: np.sort(rng.permutation(n)[: n // 2]) for each, n in model.sizes.items()}
    order = {each: rng.permutation(n) for each, n in model.sizes.items() if each not in ordered}
    # With more units these are the same function where what reads the new ones is zero.
    grows = [each for each in graph.coupled.dimensions if each.consumed and not each.counted]

    @jax.jit
    def outcomes(params, *args):
        small = graph.shrink(params, keep)
        for path, leaf in nnopt.tree.flatten(small.params).items():
            assert leaf.shape == small.widths[path]
        return (
            model.apply(params, *args),
            model.apply(graph.mask(params, keep), *args),
            small.apply(small.params, *args),
            model.apply(graph.permute(params, order), *args),
            model.apply(graph.mask(params, {each.name: keep[each.name] for each in grows}), *args),
            model.apply(unheard(params, keep, grows), *args),
        )

    whole, masked, shrunk, permuted, fewer, silent = outcomes(model.params, *model.run)
    assert far(silent, fewer) < 2e-6
    assert far(shrunk, masked) < 2e-6
    assert far(permuted, whole) < 2e-6
    assert far(masked, whole) > 1e-2
