"""Integers of 4 and 8 bits in groups, to the bit as GGUF files hold them."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.integer_quantized import Quantized
from nnopt_jax.arrays.lookup_quantized import LookupQuantized
from nnopt_jax.arrays.nodes import Node
from nnopt_jax.ops.block_formats import (
    q4_0_codes,
    q4_0_step,
    q8_0_codes,
    q8_0_step,
    stored_scale,
)
from nnopt_jax.quantization.fitted import fitted
from nnopt_jax.quantization.granularity import Blocked, Granularity, sharing
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import matrices
from nnopt_jax.tree.select import Where

_NAME = "quantization.grouped"
_SIGNED = tuple(float(level) for level in range(-8, 8))


def grouped(
    format: Literal["q4_0", "q8_0"] = "q4_0",
    *,
    where: Where = matrices,
    granularity: Granularity | None = None,
    group: int | None = None,
    axis: int | None = None,
) -> Transform:
    r"""Rounds weights in groups, with the steps and the rounding of GGUF's Q4_0 and Q8_0.

    .. math:: \hat w = \mathrm{float16}(d)\, q, \qquad
        q_{4\_0} = \min(\lfloor w / d + 8.5 \rfloor, 15) - 8, \quad d = -w_* / 8, \qquad
        q_{8\_0} = \mathrm{round}(w / d), \quad d = |w_*| / 127

    where `w_*` is the weight of greatest magnitude in a group: 4.5 and 8.5 bits a weight. For
    other widths, zero points and scales, see `quantization.uniform`, which rounds to the scale as
    it is stored. The gradient passes straight through. Entries that a mask of an earlier link
    prunes have no say in the steps.

    Args:
        format: `"q4_0"`: the greatest weight has code -8 and is exact, all 16 codes are used.
            `"q8_0"`: 8 bits, symmetric.
        where: which leaves; default: those of two axes or more.
        granularity: which weights share a step: a number, see `group` (default: 32, as in files);
            `"channel"`, one for each index of the output axes; or `"tensor"`. Slots of one axis
            take one step.
        group: entries of a group, in place of a number as `granularity`. Groups run along the
            contracted axes, flattened in the order of the product; all of them whole.
        axis: the one axis that counts as channels, in place of the output axes.

    Returns:
        The transform. It refines: masks and tables above it stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, where axes are not known or do not fit a leaf; see `bind`.
        CompositionError: at `init`, where a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.grouped("q4_0", granularity=2)
        >>> params = {"kernel": jnp.array([[8.0, -0.5], [3.4, 4.0]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[ 8. , -0.5],
               [ 3. ,  4. ]], dtype=float32)

    References:
        The GGUF format of llama.cpp, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
    """
    settings = Settings(_NAME)
    settings.choice("format", format, ("q4_0", "q8_0"))
    shared = sharing(settings, granularity, group, axis, default=32, even=True)
    settings.done()
    fit_step = q4_0_step if format == "q4_0" else q8_0_step

    def fit(part: Blocked) -> jax.Array:
        return fit_step(part.array, part.block, part.mask)

    def encode(part: Blocked, step: jax.Array) -> Node:
        x = part.array
        scale = stored_scale(step, jnp.float16)
        if format == "q8_0":
            step = jnp.where(scale == 0, jnp.float32(0), step)  # codes of 0 show no -0
            return Quantized(q8_0_codes(x, step), scale, None, x, dtype=str(x.dtype))
        # Steps have a sign here, and levels show no -0.
        return LookupQuantized(q4_0_codes(x, step) + 8, scale, None, x, _SIGNED, str(x.dtype))

    return fitted(_NAME, where, shared, fit=fit, encode=encode)
