"""`projected_mlp`: a linear projection of the inputs, then dense layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
from flax import linen as nn

from nnopt_jax.compression import Projection, johnson_lindenstrauss, pca, project
from nnopt_jax.errors import ValueRangeError
from nnopt_jax.typing import Array, Key

Kind = Literal["pca", "gaussian", "sparse", "orthogonal"]


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
    kind: Kind = "pca",
    key: Key | None = None,
    learned: bool = True,
) -> ProjectedMLP:
    """Dense layers on a few linear combinations of the inputs.

    The projection is a parameter as the weights are: it lies in the file, it is compressed by
    whatever `where` selects, and it trains where it is `learned`.

    Args:
        data: what a data loader returns; principal components are those of `data.train.x`.
        components: features that the first dense layer sees.
        hidden: units of the hidden layers.
        classes: how many logits come out.
        kind: `"pca"`, or what `compression.johnson_lindenstrauss` draws.
        key: of a random projection; a recipe gives it.
        learned: whether the projection trains too.

    Returns:
        An unbound Linen module; images (b, ...) in, logits (b, classes) out.

    Raises:
        ValueRangeError: a random projection without a key.

    Example:
        >>> import jax
        >>> from nnopt_jax.zoo.data import digits
        >>> model, images = projected_mlp(digits()), digits().test.x[:1]
        >>> shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
        >>> shapes["projection"]["matrix"].shape, sum(x.size for x in jax.tree.leaves(shapes))
        ((784, 40), 75554)
    """
    start = _start(data.train.x, components, kind, key)
    return ProjectedMLP(start, tuple(hidden), classes, learned)


def _start(x: Any, components: int, kind: Kind, key: Key | None) -> Projection:
    if kind == "pca":
        return pca(x, components)
    if key is None:
        raise ValueRangeError(f"zoo.projected_mlp: kind={kind!r} is drawn at random; give key=.")
    return johnson_lindenstrauss(key, math.prod(x.shape[1:]), components, kind=kind)
