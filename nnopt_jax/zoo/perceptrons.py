"""Networks of dense layers: with normalization, a projection, or rounded activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
from flax import linen as nn

from nnopt_jax.compression import Projection, johnson_lindenstrauss, pca, project
from nnopt_jax.errors import ValueRangeError
from nnopt_jax.quantization import (
    EmaRange,
    dynamic,
    ema_grid,
    ema_range,
    fake_quant,
    lsq_activation,
    lsq_step,
    pact,
)
from nnopt_jax.typing import Array, Key

__all__ = ["mlp", "projected_mlp", "quantized_mlp"]

ProjectionKind = Literal["pca", "gaussian", "sparse", "orthogonal"]
ActivationKind = Literal["dynamic", "ema", "lsq", "pact"]
_ALPHA = 10.0  # the initial clipping level of PACT


class MLP(nn.Module):
    """The Linen module that `mlp` returns: dense layers with batch normalization."""

    width: int
    layers: int
    classes: int

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Map images (b, ...) to logits (b, classes)."""
        x = images.reshape(images.shape[0], -1)
        for i in range(1, self.layers + 1):
            x = nn.Dense(self.width, use_bias=False, name=f"fc{i}")(x)
            x = jax.nn.relu(nn.BatchNorm(not train, momentum=0.9, name=f"norm{i}")(x))
        x = nn.Dense(self.classes, use_bias=False, name=f"fc{self.layers + 1}")(x)
        return nn.BatchNorm(not train, momentum=0.9, name=f"norm{self.layers + 1}")(x)


def mlp(width: int = 1024, layers: int = 3, classes: int = 10) -> MLP:
    """Return an MLP with batch normalization after each layer.

    Args:
        width: the number of units of a hidden layer.
        layers: the number of hidden layers.
        classes: the number of logits.

    Returns:
        An unbound Linen module; `__call__(images, train=False)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images = jnp.zeros((1, 28, 28, 1))
        >>> shapes = jax.eval_shape(mlp().init, jax.random.key(0), images)["params"]
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        2916372

    References:
        Courbariaux et al., BinaryConnect, arXiv:1511.00363, section 3.1.
    """
    return MLP(width, layers, classes)


class ProjectedMLP(nn.Module):
    """The Linen module that `projected_mlp` returns: dense layers on projected inputs."""

    start: Any  # a Projection, the initial `params["projection"]`
    hidden: Sequence[int]
    classes: int
    learned: bool

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Map images (b, ...) to logits (b, classes)."""
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
    kind: ProjectionKind = "pca",
    key: Key | None = None,
    learned: bool = True,
) -> ProjectedMLP:
    """Return dense layers on a linear projection of the inputs.

    The projection is a parameter like the weights: it is saved in the file, compressed if `where`
    selects it, and trained if it is `learned`.

    Args:
        data: a data set, whose `data.train.x` determines principal components.
        components: the number of inputs of the first dense layer.
        hidden: the numbers of units of the hidden layers.
        classes: the number of logits.
        kind: `"pca"`, or a kind of `compression.johnson_lindenstrauss`.
        key: the key of a random projection; a recipe passes it.
        learned: whether the projection is trained, too.

    Returns:
        An unbound Linen module; images (b, ...) in, logits (b, classes) out.

    Raises:
        ValueRangeError: the key of a random projection is missing.

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


def _start(x: Any, components: int, kind: ProjectionKind, key: Key | None) -> Projection:
    if kind == "pca":
        return pca(x, components)
    if key is None:
        raise ValueRangeError(f"zoo.projected_mlp: kind={kind!r} is drawn at random; give key=.")
    return johnson_lindenstrauss(key, math.prod(x.shape[1:]), components, kind=kind)


class RoundedReLU(nn.Module):
    """A ReLU whose output is rounded to a few levels."""

    kind: ActivationKind
    bits: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Round the positive part of `x` to a grid that begins at zero."""
        if self.kind == "pact":
            return pact(x, self.param("alpha", nn.initializers.constant(_ALPHA), ()), self.bits)
        x = jax.nn.relu(x)
        if self.kind == "lsq":
            return lsq_activation(x, self.param("step", self._first_step, x), self.bits)
        if self.kind == "dynamic":
            return dynamic(x, self.bits, axis=-1, symmetric=False)
        # A dictionary, because a named tuple is loaded from a file as one.
        seen = self.variable("ranges", "ema", lambda: EmaRange.start()._asdict())
        if train:
            seen.value = ema_range(EmaRange(**seen.value), x)._asdict()
        grid = ema_grid(EmaRange(**seen.value), self.bits, symmetric=False)
        return fake_quant(x, *grid, bits=self.bits)

    def _first_step(self, key: Array, x: Array) -> Array:
        del key
        return lsq_step(x, self.bits)


class QuantizedMLP(nn.Module):
    """The Linen module that `quantized_mlp` returns: dense layers with rounded activations."""

    hidden: Sequence[int]
    classes: int
    kind: ActivationKind
    bits: int

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Map images (b, ...) to logits (b, classes)."""
        x = images.reshape(images.shape[0], -1)
        for i, width in enumerate(self.hidden, 1):
            x = nn.Dense(width, name=f"fc{i}")(x)
            x = RoundedReLU(self.kind, self.bits, name=f"relu{i}")(x, train)
        return nn.Dense(self.classes, name=f"fc{len(self.hidden) + 1}")(x)


def quantized_mlp(
    activations: ActivationKind = "dynamic",
    bits: int = 8,
    hidden: Sequence[int] = (300, 100),
    classes: int = 10,
) -> QuantizedMLP:
    """Return LeNet-300-100 with rounded activations and 8-bit pixels as inputs.

    Transforms round its weights.

    Args:
        activations: `"dynamic"`: the range of each example; `"ema"`: moving averages of ranges in
            training, which are variables of the model and fixed afterwards; `"lsq"`: a learned
            step; `"pact"`: a learned clipping level.
        bits: the bits of an activation, 2 to 16, or to 8 for `"lsq"`.
        hidden: the numbers of units of the hidden layers.
        classes: the number of logits.

    Returns:
        An unbound Linen module; `__call__(images, train=False)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model, images = quantized_mlp("pact", bits=4), jnp.ones((1, 28, 28, 1))
        >>> params = model.init(jax.random.key(0), images)["params"]
        >>> float(params["relu1"]["alpha"])
        10.0

    References:
        the docstrings of the functions in `nnopt_jax.quantization`.
    """
    return QuantizedMLP(tuple(hidden), classes, activations, bits)
