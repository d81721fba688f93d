"""Modules of Flax Linen."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tests.trace.zoo.case import KEY, Case, drawn, filled, tokens


def of(module: nn.Module, *args: Any, **options: Any) -> Case:
    """The module with all of its variables, as a function."""
    variables = filled(jax.eval_shape(module.init, KEY, *args))
    mutable = [name for name in variables if name != "params"]

    def apply(variables: Any, *args: Any) -> Any:
        return module.apply(variables, *args, mutable=mutable)

    return Case(apply if mutable else module.apply, variables, args, **options)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.relu(nn.Dense(8)(nn.relu(nn.Dense(8)(x)))))  # square in the middle


class General(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.DenseGeneral((4, 6))(x))
        return nn.DenseGeneral(5, axis=(-2, -1))(x)


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), strides=(2, 2))(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=2, kernel_dilation=(2, 2))(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Transposed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.ConvTranspose(4, (2, 2), strides=(2, 2))(x))
        return nn.Conv(3, (1, 1))(x)


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(nn.Conv(8, (3, 3))(x))
        x = nn.GroupNorm(num_groups=2)(nn.Conv(8, (3, 3))(nn.relu(x)))
        return nn.Dense(3)(nn.avg_pool(nn.relu(x), (2, 2), (2, 2)).mean((1, 2)))


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(16, 8)
        return embed.attend(nn.LayerNorm()(embed(tokens)))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))


class Recurrent(nn.Module):
    cell: Any

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(self.cell(8))(x)[:, -1])


class Layer(nn.Module):
    @nn.compact
    def __call__(self, carry, _):
        return carry + nn.Dense(8)(nn.relu(nn.Dense(16)(carry))), None


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return nn.Dense(4)(layers()(x, None)[0])


class Rematerialized(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.remat(Layer)()(x, None)[0])


class Members(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.vmap(
            nn.Dense, in_axes=None, out_axes=1, axis_size=3,
            variable_axes={"params": 0}, split_rngs={"params": True},
        )  # fmt: skip
        return nn.relu(dense(5)(x)).sum(1)


class WeightNormalized(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.WeightNorm(nn.Dense(8))(x)))


class Halves(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(dtype=jnp.bfloat16)(nn.Dense(8, dtype=jnp.bfloat16)(x))
        return nn.Dense(4, dtype=jnp.bfloat16)(nn.gelu(x))


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dropout(0.5, deterministic=False)(nn.Dense(8)(x), rng=jax.random.key(1))
        return nn.Dense(4)(x)


MODELS = {
    "linen_dense": lambda: of(Mlp(), drawn(4, 8)),
    "linen_dense_general": lambda: of(General(), drawn(4, 8)),
    "linen_conv": lambda: of(Convolutions(), drawn(4, 9, 9, 2)),
    "linen_conv_transpose": lambda: of(Transposed(), drawn(4, 4, 4, 2)),
    "linen_norms": lambda: of(Normalized(), drawn(4, 8, 8, 1), batched=False),
    "linen_tied_embed": lambda: of(Tied(), tokens(4, 5)),
    "linen_attention": lambda: of(Attention(), drawn(4, 5, 8)),
    "linen_lstm": lambda: of(Recurrent(nn.OptimizedLSTMCell), drawn(4, 5, 8)),
    "linen_gru": lambda: of(Recurrent(nn.GRUCell), drawn(4, 5, 8)),
    "linen_scan": lambda: of(Stacked(), drawn(4, 8)),
    "linen_remat": lambda: of(Rematerialized(), drawn(4, 8)),
    "linen_vmap": lambda: of(Members(), drawn(4, 8)),
    "linen_weight_norm": lambda: of(WeightNormalized(), drawn(4, 8)),
    "linen_bfloat16": lambda: of(Halves(), drawn(4, 8), most=1e-2),
    "linen_dropout": lambda: of(Dropped(), drawn(4, 8), batched=False),
}
