"""Linen, NNX, dataclasses and plain containers name the same leaves alike."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from nnopt_jax.tree import flatten

NAMES = ["body/bias", "body/kernel", "head/bias", "head/kernel"]


class _Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2, name="head")(linen.Dense(3, name="body")(x))


class _NNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.body = nnx.Linear(4, 3, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Layer:
    bias: Any
    kernel: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Model:
    body: _Layer
    head: _Layer


def _layer(cls: Any = dict) -> Any:
    return cls(bias=jnp.zeros(2), kernel=jnp.zeros((2, 2)))


def test_linen_and_nnx_agree():
    variables = _Linen().init(jax.random.key(0), jnp.ones((1, 4)))
    state = nnx.state(_NNX(nnx.Rngs(0)), nnx.Param)
    assert list(flatten(variables["params"])) == NAMES
    assert list(flatten(nnx.to_pure_dict(state))) == NAMES
    assert list(flatten(state)) == NAMES


def test_dataclasses_and_dictionaries_agree():
    assert list(flatten(_Model(_layer(_Layer), _layer(_Layer)))) == NAMES
    assert list(flatten({"head": _layer(), "body": _layer()})) == NAMES


def test_positions_in_lists_and_tuples_are_names():
    assert list(flatten([_layer(), (_layer(_Layer),)])) == [
        "0/bias", "0/kernel", "1/0/bias", "1/0/kernel",
    ]  # fmt: skip
