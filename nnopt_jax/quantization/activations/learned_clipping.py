"""Activations clipped at a learned level (PACT)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from nnopt_jax.ops.gradient_estimators import gate, round_clip, straight_through
from nnopt_jax.settings import Settings
from nnopt_jax.typing import Array, ArrayLike


def pact(x: ArrayLike, alpha: ArrayLike, bits: int = 8) -> Array:
    r"""Clip activations to a learned range, and round them (PACT).

    $$ y = \mathrm{clip}(x, 0, \alpha), \qquad
       \hat y = \mathrm{round}\Big(y\,\frac{2^b - 1}{\alpha}\Big)\,\frac{\alpha}{2^b - 1}, \qquad
       \frac{\partial \hat y}{\partial \alpha} = [x \ge \alpha], \quad
       \frac{\partial \hat y}{\partial x} = [0 \le x < \alpha] $$

    The function replaces a ReLU. Train `alpha` with the parameters, from a large initial value (10
    in the paper), with weight decay, which lowers it until clipping increases the loss.

    Args:
        x: float array of any shape; NaN stays NaN.
        alpha: a scalar; if it is not positive, the result is zero.
        bits: `b`, 1 to 16.

    Returns:
        An array of the shape and dtype of `x`.

    Raises:
        ValueRangeError: `bits` is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.array([-1.0, 0.9, 5.0])
        >>> print(pact(x, 3.0, bits=2))
        [0. 1. 3.]
        >>> print(jax.grad(lambda alpha: pact(x, alpha, bits=2).sum())(3.0))
        1.0

    References:
        Choi et al. 2018, PACT: Parameterized Clipping Activation, section 3.
    """
    settings = Settings("quantization.pact")
    settings.integer("bits", bits, 1, 16)
    settings.done()
    x, alpha = jnp.asarray(x), jnp.asarray(alpha).astype(jnp.float32)
    levels = 2**bits - 1
    fixed, top = lax.stop_gradient(x).astype(jnp.float32), lax.stop_gradient(alpha)
    some = ~(top < jnp.finfo(jnp.float32).tiny)  # NaN compares unequal to zero, and so stays
    # Divide by alpha first, because the number of levels over a small alpha would overflow.
    share = jnp.clip(fixed / jnp.where(some, top, 1.0), 0.0, 1.0)
    codes = round_clip(share * levels, 0, levels)
    shown = codes * (jnp.where(some, top, 0.0) * jnp.float32(1 / levels))
    beyond = fixed >= top
    way = gate(x, (fixed >= 0) & ~beyond).astype(jnp.float32) + jnp.where(beyond, alpha, 0.0)
    return straight_through(shown.astype(x.dtype), way)
