"""`mlp`: dense layers of one width with batch normalization, as binary networks are trained."""

from __future__ import annotations

import jax
from flax import linen as nn

from nnopt_jax.typing import Array


class MLP(nn.Module):
    """The network; make it with `mlp`."""

    width: int
    layers: int
    classes: int

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Maps images (b, ...) to logits (b, classes)."""
        x = images.reshape(images.shape[0], -1)
        for i in range(1, self.layers + 1):
            x = nn.Dense(self.width, use_bias=False, name=f"fc{i}")(x)
            x = jax.nn.relu(nn.BatchNorm(not train, momentum=0.9, name=f"norm{i}")(x))
        x = nn.Dense(self.classes, use_bias=False, name=f"fc{self.layers + 1}")(x)
        return nn.BatchNorm(not train, momentum=0.9, name=f"norm{self.layers + 1}")(x)


def mlp(width: int = 1024, layers: int = 3, classes: int = 10) -> MLP:
    """An MLP with batch normalization after each layer; weights may be of any scale.

    Args:
        width: units of a hidden layer.
        layers: hidden layers.
        classes: how many logits come out.

    Returns:
        An unbound Linen module; `__call__(images, train=False)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images = jnp.zeros((1, 28, 28, 1))
        >>> shapes = jax.eval_shape(mlp().init, jax.random.key(0), images)["params"]
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        2916372

    Source: Courbariaux et al., BinaryConnect, arXiv:1511.00363, section 3.1.
    """
    return MLP(width, layers, classes)
