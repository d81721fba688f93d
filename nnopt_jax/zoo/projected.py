"""`projected_mlp`: principal components of the inputs, then dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from nnopt_jax.compression import pca, project
from nnopt_jax.typing import Array


class ProjectedMLP(nn.Module):
    """The network; make it with `projected_mlp`."""

    start: Any  # a Projection: what `params["projection"]` begins as
    hidden: Sequence[int]
    classes: int
    learned: bool

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps images (b, ...) to logits (b, classes)."""
        projection = self.param("projection", lambda key: dict(self.start))
        x = project(projection if self.learned else jax.lax.stop_gradient(projection), images)
        for i, width in enumerate(self.hidden, 1):
            x = jax.nn.relu(nn.Dense(width, name=f"fc{i}")(x))
        return nn.Dense(self.classes, name=f"fc{len(self.hidden) + 1}")(x)


def projected_mlp(
    data: Any,
    components: int = 40,
    hidden: Sequence[int] = (300, 100),
    classes: int = 10,
    *,
    learned: bool = True,
) -> ProjectedMLP:
    """Dense layers on principal components of the training inputs.

    The projection is a parameter as the weights are: it lies in the file, it is compressed by
    whatever `where` selects, and it trains where it is `learned`.

    Args:
        data: what a data loader returns; the components are those of `data.train.x`.
        components: features that the first dense layer sees.
        hidden: units of the hidden layers.
        classes: how many logits come out.
        learned: whether the projection trains too.

    Returns:
        An unbound Linen module; images (b, ...) in, logits (b, classes) out.

    Example:
        >>> import jax
        >>> from nnopt_jax.zoo.data import digits
        >>> model, images = projected_mlp(digits()), digits().test.x[:1]
        >>> shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
        >>> shapes["projection"]["matrix"].shape, sum(x.size for x in jax.tree.leaves(shapes))
        ((784, 40), 75554)
    """
    return ProjectedMLP(pca(data.train.x, components), tuple(hidden), classes, learned)
