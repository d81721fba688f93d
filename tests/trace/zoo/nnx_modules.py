"""Modules of Flax NNX, split and merged inside the function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from tests.trace.zoo.case import Case, drawn, filled, tokens


def of(create: Callable[[nnx.Rngs], Any], *args: Any, **options: Any) -> Case:
    """The module's state as a tree of arrays, and the function that puts it together."""
    graph, state = nnx.split(nnx.eval_shape(lambda: create(nnx.Rngs(0))))

    def apply(tree: Any, *args: Any) -> Any:
        whole = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(whole, tree)
        return nnx.merge(graph, whole)(*args)

    return Case(apply, filled(nnx.to_pure_dict(state)), args, **options)


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)
        self.heads = nnx.LinearGeneral((2, 2), 3, axis=(-2, -1), rngs=rngs)

    def __call__(self, x):
        return self.heads(self.down(nnx.relu(self.up(x))).reshape(-1, 2, 2))


class Convolutions(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.batch = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.apart = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.group = nnx.GroupNorm(8, num_groups=2, rngs=rngs)
        self.back = nnx.ConvTranspose(8, 2, (2, 2), rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.batch(self.first(x)))
        return self.back(nnx.relu(self.group(self.apart(x))))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(16, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(self.norm(x))
        return self.embed.attend(x + self.down(nnx.gelu(self.up(x))))


class Recurrent(nnx.Module):
    def __init__(self, cell, rngs):
        self.rnn = nnx.RNN(cell(4, 8, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x)[:, -1])


class Stacked(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def create(rngs):
            return nnx.Linear(8, 8, rngs=rngs)

        self.layers, self.head = create(rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def forward(layer, x):
            return x + nnx.relu(layer(x))

        return self.head(forward(self.layers, x))


class Rematerialized(nnx.Module):
    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)

    def __call__(self, x):
        return nnx.remat(lambda m, x: m.down(nnx.gelu(m.up(x))))(self, x)


class Members(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def create(rngs):
            return nnx.Linear(8, 4, rngs=rngs)

        self.members = create(rngs)

    def __call__(self, x):
        return nnx.vmap(lambda member, x: member(x), in_axes=(0, None), out_axes=1)(self.members, x)


MODELS = {
    "nnx_linear": lambda: of(Mlp, drawn(4, 8)),
    "nnx_conv": lambda: of(Convolutions, drawn(4, 8, 8, 1)),
    "nnx_transformer": lambda: of(Transformer, tokens(4, 5)),
    "nnx_lstm": lambda: of(lambda rngs: Recurrent(nnx.LSTMCell, rngs), drawn(4, 5, 4)),
    "nnx_gru": lambda: of(lambda rngs: Recurrent(nnx.GRUCell, rngs), drawn(4, 5, 4)),
    "nnx_scan": lambda: of(Stacked, drawn(4, 8)),
    "nnx_remat": lambda: of(Rematerialized, drawn(4, 8)),
    "nnx_vmap": lambda: of(Members, drawn(4, 8)),
}
