"""`quantized_mlp`: dense layers whose activations are rounded, in training and after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
from flax import linen as nn

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
from nnopt_jax.typing import Array

Kind = Literal["dynamic", "ema", "lsq", "pact"]
_ALPHA = 10.0  # where PACT's level of clipping begins


class RoundedReLU(nn.Module):
    """A ReLU, its outcome rounded."""

    kind: Kind
    bits: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """An array of the shape of `x`, on a grid from zero up."""
        if self.kind == "pact":
            return pact(x, self.param("alpha", nn.initializers.constant(_ALPHA), ()), self.bits)
        x = jax.nn.relu(x)
        if self.kind == "lsq":
            return lsq_activation(x, self.param("step", self._first_step, x), self.bits)
        if self.kind == "dynamic":
            return dynamic(x, self.bits, axis=-1, symmetric=False)
        # A dictionary, as which any named tuple comes back from a file.
        seen = self.variable("ranges", "ema", lambda: EmaRange.start()._asdict())
        if train:
            seen.value = ema_range(EmaRange(**seen.value), x)._asdict()
        grid = ema_grid(EmaRange(**seen.value), self.bits, symmetric=False)
        return fake_quant(x, *grid, bits=self.bits)

    def _first_step(self, key: Array, x: Array) -> Array:
        del key
        return lsq_step(x, self.bits)


class QuantizedMLP(nn.Module):
    """The network; make it with `quantized_mlp`."""

    hidden: Sequence[int]
    classes: int
    kind: Kind
    bits: int

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Maps images (b, ...) to logits (b, classes)."""
        x = images.reshape(images.shape[0], -1)
        for i, width in enumerate(self.hidden, 1):
            x = nn.Dense(width, name=f"fc{i}")(x)
            x = RoundedReLU(self.kind, self.bits, name=f"relu{i}")(x, train)
        return nn.Dense(self.classes, name=f"fc{len(self.hidden) + 1}")(x)


def quantized_mlp(
    activations: Kind = "dynamic",
    bits: int = 8,
    hidden: Sequence[int] = (300, 100),
    classes: int = 10,
) -> QuantizedMLP:
    """LeNet-300-100 with rounded activations; its inputs, pixels of 8 bits, are so anyway.

    Weights are a transform's to round.

    Args:
        activations: `"dynamic"`: the range of each example; `"ema"`: moving averages of the ranges
            in training, kept beside the parameters and fixed after it; `"lsq"`: a learned step;
            `"pact"`: a learned level of clipping.
        bits: of an activation; 2 to 16, `"lsq"` to 8.
        hidden: units of the hidden layers.
        classes: how many logits come out.

    Returns:
        An unbound Linen module; `__call__(images, train=False)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model, images = quantized_mlp("pact", bits=4), jnp.ones((1, 28, 28, 1))
        >>> params = model.init(jax.random.key(0), images)["params"]
        >>> float(params["relu1"]["alpha"])
        10.0

    Source: the docstrings of the functions in `nnopt_jax.quantization`.
    """
    return QuantizedMLP(tuple(hidden), classes, activations, bits)
