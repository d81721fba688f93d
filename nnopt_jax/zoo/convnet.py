"""A classifier of 32x32 color images with two convolutions, in Linen and in NNX.

Conv 64 and conv 128 (3x3, stride 1, padding 1, ReLU), 2x2 average pool, dense 512 with ReLU,
dense classes. Both forms name and shape their parameters alike, so one tree fits both.
"""

from __future__ import annotations

import jax
from flax import linen as nn, nnx

from nnopt_jax.typing import Array

_FEATURES = 16 * 16 * 128


class Net(nn.Module):
    """The Linen module that `net` returns."""

    classes: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Map images (b, 32, 32, 3) to logits (b, classes)."""
        x = jax.nn.relu(nn.Conv(64, (3, 3), padding=1, name="conv1")(images))
        x = jax.nn.relu(nn.Conv(128, (3, 3), padding=1, name="conv2")(x))
        x = _flat_halves(x)
        x = jax.nn.relu(nn.Dense(512, name="fc1")(x))
        return nn.Dense(self.classes, name="fc2")(x)


class NetNNX(nnx.Module):
    """The NNX module that `net_nnx` returns."""

    def __init__(self, classes: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(3, 64, (3, 3), padding=1, rngs=rngs)
        self.conv2 = nnx.Conv(64, 128, (3, 3), padding=1, rngs=rngs)
        self.fc1 = nnx.Linear(_FEATURES, 512, rngs=rngs)
        self.fc2 = nnx.Linear(512, classes, rngs=rngs)

    def __call__(self, images: Array) -> Array:
        """Map images (b, 32, 32, 3) to logits (b, classes)."""
        x = _flat_halves(jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(images)))))
        return self.fc2(jax.nn.relu(self.fc1(x)))


def net(classes: int = 10) -> Net:
    """Return the network in Linen: 16,858,506 parameters for ten classes.

    Args:
        classes: the number of logits.

    Returns:
        An unbound Linen module; images (b, 32, 32, 3) in, logits (b, classes) out.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images = jnp.zeros((1, 32, 32, 3))
        >>> shapes = jax.eval_shape(net().init, jax.random.key(0), images)["params"]
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        16858506
    """
    return Net(classes=classes)


def net_nnx(rngs: nnx.Rngs, classes: int = 10) -> NetNNX:
    """Return the network in NNX: 16,858,506 parameters for ten classes.

    Args:
        rngs: the random streams of the initial parameters.
        classes: the number of logits.

    Returns:
        An NNX module; images (b, 32, 32, 3) in, logits (b, classes) out.

    Example:
        >>> from flax import nnx
        >>> shapes = nnx.eval_shape(lambda: net_nnx(nnx.Rngs(0)))
        >>> shapes.fc1.kernel.shape
        (32768, 512)
    """
    return NetNNX(classes, rngs)


def _flat_halves(x: Array) -> Array:
    x = nn.avg_pool(x, (2, 2), strides=(2, 2))
    return x.reshape(x.shape[0], -1)
