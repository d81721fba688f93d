"""LeNet-300-100 and LeNet-5 as in Caffe, each in Linen and in NNX.

Both forms of a network have parameters of the same names and shapes, so that one tree fits both.

References:
    LeCun et al., "Gradient-based learning applied to document recognition" (1998); layer sizes as
    in Caffe's MNIST example and in Han et al., "Deep Compression", arXiv:1510.00149, table 1.
"""

from __future__ import annotations

import jax
from flax import linen as nn, nnx

from nnopt_jax.typing import Array

_INPUTS = 28 * 28
_LENET5_FEATURES = 4 * 4 * 50


class LeNet300100(nn.Module):
    """The Linen module that `lenet_300_100` returns."""

    classes: int
    width: float = 1.0

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Map images (b, 28, 28, 1) to logits (b, classes)."""
        x = images.reshape(images.shape[0], -1)
        x = jax.nn.relu(nn.Dense(_units(300, self.width), name="fc1")(x))
        x = jax.nn.relu(nn.Dense(_units(100, self.width), name="fc2")(x))
        return nn.Dense(self.classes, name="fc3")(x)


class LeNet5(nn.Module):
    """The Linen module that `lenet5` returns."""

    classes: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Map images (b, 28, 28, 1) to logits (b, classes)."""
        x = _halve(nn.Conv(20, (5, 5), padding="VALID", name="conv1")(images))
        x = _halve(nn.Conv(50, (5, 5), padding="VALID", name="conv2")(x))
        x = x.reshape(x.shape[0], -1)
        x = jax.nn.relu(nn.Dense(500, name="fc1")(x))
        return nn.Dense(self.classes, name="fc2")(x)


class LeNet300100NNX(nnx.Module):
    """The NNX module that `lenet_300_100_nnx` returns."""

    def __init__(self, classes: int, rngs: nnx.Rngs, width: float = 1.0) -> None:
        wide, narrow = _units(300, width), _units(100, width)
        self.fc1 = nnx.Linear(_INPUTS, wide, rngs=rngs)
        self.fc2 = nnx.Linear(wide, narrow, rngs=rngs)
        self.fc3 = nnx.Linear(narrow, classes, rngs=rngs)

    def __call__(self, images: Array) -> Array:
        """Map images (b, 28, 28, 1) to logits (b, classes)."""
        x = images.reshape(images.shape[0], -1)
        return self.fc3(jax.nn.relu(self.fc2(jax.nn.relu(self.fc1(x)))))


class LeNet5NNX(nnx.Module):
    """The NNX module that `lenet5_nnx` returns."""

    def __init__(self, classes: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 20, (5, 5), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(20, 50, (5, 5), padding="VALID", rngs=rngs)
        self.fc1 = nnx.Linear(_LENET5_FEATURES, 500, rngs=rngs)
        self.fc2 = nnx.Linear(500, classes, rngs=rngs)

    def __call__(self, images: Array) -> Array:
        """Map images (b, 28, 28, 1) to logits (b, classes)."""
        x = _halve(self.conv2(_halve(self.conv1(images))))
        x = x.reshape(x.shape[0], -1)
        return self.fc2(jax.nn.relu(self.fc1(x)))


def lenet_300_100(classes: int = 10, width: float = 1.0) -> LeNet300100:
    """Return LeNet-300-100 in Linen: 784-300-100-classes with ReLU, 266,610 parameters.

    Args:
        classes: the number of logits.
        width: the factor by which the number of hidden units is scaled.

    Returns:
        An unbound Linen module; images (b, 28, 28, 1) in, logits (b, classes) out.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images = jnp.zeros((1, 28, 28, 1))
        >>> shapes = jax.eval_shape(lenet_300_100().init, jax.random.key(0), images)["params"]
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        266610
    """
    return LeNet300100(classes=classes, width=width)


def lenet5(classes: int = 10) -> LeNet5:
    """Return LeNet-5 in Linen: conv 20, pool, conv 50, pool, dense 500 with ReLU, dense classes.

    Convolutions are 5x5 without padding and, as in Caffe, without ReLU; pooling takes the maximum
    of 2x2. There are 431,080 parameters for ten classes.

    Args:
        classes: the number of logits.

    Returns:
        An unbound Linen module; images (b, 28, 28, 1) in, logits (b, classes) out.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images = jnp.zeros((1, 28, 28, 1))
        >>> shapes = jax.eval_shape(lenet5().init, jax.random.key(0), images)["params"]
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        431080
    """
    return LeNet5(classes=classes)


def lenet_300_100_nnx(rngs: nnx.Rngs, classes: int = 10, width: float = 1.0) -> LeNet300100NNX:
    """Return LeNet-300-100 in NNX: 784-300-100-classes with ReLU, 266,610 parameters.

    Args:
        rngs: the random streams of the initial parameters.
        classes: the number of logits.
        width: the factor by which the number of hidden units is scaled.

    Returns:
        An NNX module; images (b, 28, 28, 1) in, logits (b, classes) out.

    Example:
        >>> from flax import nnx
        >>> shapes = nnx.eval_shape(lambda: lenet_300_100_nnx(nnx.Rngs(0)))
        >>> shapes.fc1.kernel.shape
        (784, 300)
    """
    return LeNet300100NNX(classes, rngs, width)


def lenet5_nnx(rngs: nnx.Rngs, classes: int = 10) -> LeNet5NNX:
    """Return LeNet-5 in NNX: conv 20, pool, conv 50, pool, dense 500 with ReLU, dense classes.

    The network is the same as `lenet5`, with 431,080 parameters for ten classes.

    Args:
        rngs: the random streams of the initial parameters.
        classes: the number of logits.

    Returns:
        An NNX module; images (b, 28, 28, 1) in, logits (b, classes) out.

    Example:
        >>> from flax import nnx
        >>> shapes = nnx.eval_shape(lambda: lenet5_nnx(nnx.Rngs(0)))
        >>> shapes.fc1.kernel.shape
        (800, 500)
    """
    return LeNet5NNX(classes, rngs)


def _halve(x: Array) -> Array:
    return nn.max_pool(x, (2, 2), strides=(2, 2))


def _units(full: int, width: float) -> int:
    return max(1, round(full * width))
