"""Floats of 4 bits with a scale for each block."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnopt_jax.ops.block_formats import block_largest, stored_scale
from nnopt_jax.ops.lookup_tables import E2M1
from nnopt_jax.quantization.granularity import Blocked, Granularity, sharing
from nnopt_jax.quantization.leveled import leveled
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import matrices
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import DTypeLike

_NAME = "quantization.fp4"


def fp4(
    *,
    where: Where = matrices,
    granularity: Granularity | None = None,
    group: int | None = None,
    axis: int | None = None,
    scale_dtype: DTypeLike = jnp.float32,
) -> Transform:
    r"""Rounds weights to floats of 4 bits (E2M1): 0, 0.5, 1, 1.5, 2, 3, 4 and 6, of either sign.

    .. math:: \hat w = s\, l_c, \qquad s = \max_{block} |w| / 6, \qquad
        c = \arg\min_k |w / s - l_k|

    The gradient passes straight through. Entries that a mask of an earlier link prunes have no say
    in the scales. The sixteenth code, -0, is not used.

    Args:
        where: which leaves; default: those of two axes or more.
        granularity: which weights share a scale: `"tensor"`; `"channel"`, one for each index of
            the output axes; or a number, see `group`. Slots of one axis (a table that is quantized
            after sharing) take one scale. Default: groups of 32.
        group: entries of a group, in place of a number as `granularity`. Groups run along the
            contracted axes, flattened in the order of the product; the last one may be shorter.
        axis: the one axis that counts as channels, in place of the output axes.
        scale_dtype: dtype the scales are stored and applied in.

    Returns:
        The transform. It refines: masks and tables above it stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, where axes are not known or do not fit a leaf; see `bind`.
        CompositionError: at `init`, where a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.fp4(granularity="tensor")
        >>> params = {"kernel": jnp.array([[12.0, -1.1], [6.5, 0.4]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[12., -1.],
               [ 6.,  0.]], dtype=float32)

    References:
        Rouhani et al. 2023, OCP Microscaling Formats (MX) Specification 1.0, section 5.3.3 (the
        elements); Dettmers et al. 2023, QLoRA, section 3 (a scale for each block).
    """
    settings = Settings(_NAME)
    shared = sharing(settings, granularity, group, axis, default=32)
    settings.floating("scale_dtype", scale_dtype)
    settings.done()

    def fit(part: Blocked) -> jax.Array:
        largest = block_largest(part.array, part.block, part.mask)
        return stored_scale(largest * jnp.float32(1 / E2M1[-1]), scale_dtype)

    return leveled(_NAME, E2M1, where, shared, fit=fit)
