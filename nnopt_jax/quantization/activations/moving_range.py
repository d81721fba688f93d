"""Activation ranges by moving averages in training."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from nnopt_jax.columns import brief_fields
from nnopt_jax.ops.grid import grid_of_range
from nnopt_jax.quantization.activations.activation_checks import check_kind, floats
from nnopt_jax.quantization.activations.static_grids import ActivationGrid, check
from nnopt_jax.settings import Settings
from nnopt_jax.typing import Array, ArrayLike


class EmaRange(NamedTuple):
    """Moving averages of extreme values, a small pytree to keep with the parameters.

    Args:
        low: float32, the average of the least values, before division by the weight.
        high: float32, the average of the greatest values, likewise.
        weight: float32, the sum of the weights of all batches, below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> state = ema_range(EmaRange.start(), jnp.array([-1.0, 3.0]), decay=0.9)
        >>> print(state.high.round(2), state.weight.round(2), state.ends()[1].round(2))
        0.3 0.1 3.0
    """

    low: Array
    high: Array
    weight: Array

    __repr__ = brief_fields

    @classmethod
    def start(cls) -> EmaRange:
        """Return the state before the first batch."""
        return cls(jnp.float32(0), jnp.float32(0), jnp.float32(0))

    def ends(self) -> tuple[Array, Array]:
        """Return the bias-corrected averages; 0 before the first batch."""
        share = jnp.where(self.weight > 0, self.weight, 1.0)
        return self.low / share, self.high / share


def ema_range(state: EmaRange, x: ArrayLike, decay: float = 0.99) -> EmaRange:
    r"""Add the extreme values of a batch to moving averages.

    $$ m_t = d \, m_{t-1} + (1 - d) \, x_t, \qquad \hat m_t = m_t / (1 - d^t) $$

    Args:
        state: `EmaRange.start()` for the first batch.
        x: float array of any shape; NaN and infinities are ignored, and a batch of nothing else
            changes nothing. It gets no gradient.
        decay: `d`, from 0 to just below 1.

    Returns:
        The new state.

    Raises:
        ValueRangeError: `decay` is out of range, `state` is not an `EmaRange`, or `x` is not an
            array of floats.

    Example:
        >>> import jax.numpy as jnp
        >>> state = EmaRange.start()
        >>> for top in (1.0, 2.0):
        ...     state = ema_range(state, jnp.array([0.0, top]), decay=0.5)
        >>> print(state.ends()[1].round(4))
        1.6667

    References:
        Jacob et al. 2018, Quantization and Training of Neural Networks, section 3.1; bias
        correction: Kingma and Ba 2015, Adam, section 3.
    """
    settings = Settings("quantization.ema_range")
    settings.number("decay", decay, 0, 1)
    if decay == 1:
        settings.wrong("decay", decay, "never learns; give a number below 1.")
    settings.done()
    check_kind("ema_range", state, EmaRange, "ema_range")
    v = lax.stop_gradient(floats("ema_range", x)).astype(jnp.float32)
    finite = jnp.isfinite(v)
    low = jnp.min(v, initial=jnp.inf, where=finite)
    high = jnp.max(v, initial=-jnp.inf, where=finite)
    some = low <= high

    def average(old: Array, new: Array) -> Array:
        return jnp.where(some, decay * old + (1 - decay) * new, old)

    return EmaRange(
        average(state.low, low),
        average(state.high, high),
        average(state.weight, jnp.float32(1)),
    )


def ema_grid(state: EmaRange, bits: int = 8, *, symmetric: bool = True) -> ActivationGrid:
    """Return the grid that spans the averaged range.

    Args:
        state: the result of `ema_range`.
        bits: 2 to 16.
        symmetric: whether codes are symmetric about zero.

    Returns:
        The grid; its scale is 1 before the first batch.

    Raises:
        ValueRangeError: a setting is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> state = ema_range(EmaRange.start(), jnp.array([-1.0, 12.7]))
        >>> print(ema_grid(state).scale.round(4))
        0.1

    References:
        Jacob et al. 2018, Quantization and Training of Neural Networks, section 3.1.
    """
    check("ema_grid", bits, symmetric)
    check_kind("ema_grid", state, EmaRange, "ema_range")
    return ActivationGrid(*grid_of_range(*state.ends(), bits, symmetric=symmetric))
