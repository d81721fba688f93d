"""Modules of Equinox and dm-haiku."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import haiku as hk
import jax

from tests.trace.zoo.case import KEY, Case, drawn, filled


def of_equinox(create: Callable[[], Any], *args: Any) -> Case:
    """The module's arrays as parameters; modules of Equinox take one example at a time."""
    model = eqx.filter_eval_shape(create)
    arrays, rest = eqx.partition(model, lambda x: isinstance(x, jax.ShapeDtypeStruct))

    def apply(arrays: Any, *args: Any) -> Any:
        return jax.vmap(eqx.combine(arrays, rest))(*args)

    return Case(apply, filled(arrays), args)


class Convolutions(eqx.Module):
    first: eqx.nn.Conv2d
    apart: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self):
        first, second, third = jax.random.split(KEY, 3)
        self.first = eqx.nn.Conv2d(1, 8, 3, key=first)
        self.apart = eqx.nn.Conv2d(8, 8, 3, groups=8, key=second)
        self.head = eqx.nn.Linear(8 * 16, 3, key=third)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.apart(jax.nn.relu(self.first(x)))).ravel())


class Attention(eqx.Module):
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention

    def __init__(self):
        self.norm = eqx.nn.LayerNorm(8)
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=KEY)

    def __call__(self, x):
        y = jax.vmap(self.norm)(x)
        return x + self.attention(y, y, y)


def of_haiku(function: Any, *args: Any) -> Case:
    """A transformed function without random numbers."""
    model = hk.without_apply_rng(hk.transform(function))
    return Case(model.apply, filled(jax.eval_shape(model.init, KEY, *args)), args)


def _haiku_mlp(x):
    return hk.nets.MLP([8, 8, 3])(x)


def _haiku_attention(x):
    x = x + hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling())(x, x, x)
    return hk.Linear(3)(hk.LayerNorm(-1, True, True)(x))


def _haiku_conv(x):
    return hk.Linear(3)(jax.nn.relu(hk.Conv2D(4, 3)(x)).mean((1, 2)))


MODELS = {
    "equinox_mlp": lambda: of_equinox(lambda: eqx.nn.MLP(8, 4, 8, 2, key=KEY), drawn(4, 8)),
    "equinox_conv": lambda: of_equinox(Convolutions, drawn(4, 1, 8, 8)),
    "equinox_attention": lambda: of_equinox(Attention, drawn(4, 5, 8)),
    "haiku_mlp": lambda: of_haiku(_haiku_mlp, drawn(4, 8)),
    "haiku_attention": lambda: of_haiku(_haiku_attention, drawn(4, 5, 8)),
    "haiku_conv": lambda: of_haiku(_haiku_conv, drawn(4, 8, 8, 1)),
}
