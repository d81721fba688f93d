"""The networks, rules and references that the tests of meshes share."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nnopt_jax import parallel
from nnopt_jax.zoo.transformer import Transformer
from tests import tolerance

MODEL = Transformer(
    inputs=64, classes=64, width=32, heads=4, hidden=64, layers=2, length=16, causal=True
)

MEGATRON = [
    ("**/attention/out/kernel", ("model",)),
    ("**/attention/*/kernel", (None, "model")),
    ("**/up/kernel", (None, "model")),
    ("**/up/bias", ("model",)),
    ("**/down/kernel", ("model",)),
    ("embed/kernel", ("model",)),
    ("head/kernel", (None, "model")),
]
"""The split of Megatron-LM, written by hand."""

MESHES = {
    "dp8": {"data": 8},
    "fsdp8": {"fsdp": 8},
    "tp4": {"data": 1, "model": 4},
    "dp2 x tp4": {"data": 2, "model": 4},
    "dp2 x fsdp4": {"data": 2, "fsdp": 4},
    "dp2 x fsdp2 x tp2": {"data": 2, "fsdp": 2, "model": 2},
}


def loss(params, batch):
    """Cross-entropy of the next token."""
    return losses(params, batch).mean()


def losses(params, batch):
    logits = MODEL(params, batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])


def batch(seed=1, rows=16):
    x = jax.random.randint(jax.random.key(seed), (rows, MODEL.length), 0, MODEL.inputs)
    return {"x": x, "y": jnp.roll(x, -1, 1)}


@functools.cache
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


@functools.cache
def reference():
    """Loss and gradients on one device."""
    return jax.jit(jax.value_and_grad(loss))(params(), batch())


@functools.cache
def within():
    """How far apart two orders of the sums of `reference` may lie."""
    return tolerance.relative(jax.value_and_grad(loss), params(), batch())


def mesh(axes):
    count = int(np.prod(list(axes.values())))
    return parallel.mesh(devices=jax.devices()[:count], **axes)


def plan(axes, tree=None, **settings):
    on = mesh(axes) if isinstance(axes, dict) else axes
    rules = MEGATRON if "model" in on.shape else []
    return parallel.specs(params() if tree is None else tree, on, rules, least=0, **settings)


def keep_gradients():
    """An optimizer whose state is the gradient it was given, and which moves nothing."""
    return optax.chain(optax.trace(decay=0.0), optax.scale(0.0))


def gradients(state):
    """What `keep_gradients` kept, of the parameters."""
    return state.opt_state[0].trace.params


def relative(found, wanted):
    """The greatest difference of a leaf, relative to its greatest entry."""
    return max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max() / (np.abs(np.asarray(b)).max() + 1e-9))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    )
