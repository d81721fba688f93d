"""What the golden run trains: a network, data and measures that need nothing of the library."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def network() -> Any:
    """Parameters, and the function of them."""
    rng = np.random.default_rng(0)
    sizes = {"hidden": (6, 8), "out": (8, 3)}
    params = {
        name: {
            "kernel": jnp.asarray((rng.normal(size=size) / 2).astype(np.float32)),
            "bias": jnp.zeros(size[1]),
        }
        for name, size in sizes.items()
    }

    def apply(params: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
        return h @ params["out"]["kernel"] + params["out"]["bias"][None]

    return params, apply


def blobs() -> Any:
    """Three clusters of points."""
    rng = np.random.default_rng(1)
    y = np.arange(96) % 3
    x = (rng.normal(size=(96, 6)) * 0.6 + np.eye(6)[y] * 2).astype(np.float32)
    split = SimpleNamespace(x=x, y=y.astype(np.int32))
    return SimpleNamespace(train=split, test=split)


def loss(logits: Any, labels: Any) -> Any:
    """Cross-entropy."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
    return -chosen.mean()


def error(logits: Any, labels: Any) -> Any:
    """The share of wrong answers."""
    return (logits.argmax(1) != labels).mean()
