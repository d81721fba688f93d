"""Microscaling floats of 4 bits."""

from __future__ import annotations

import jax

from nnopt_jax.arrays.scales import Powers
from nnopt_jax.ops.block_formats import block_largest, shared_exponent
from nnopt_jax.ops.lookup_tables import E2M1
from nnopt_jax.quantization.granularity import Blocked, Granularity, sharing
from nnopt_jax.quantization.leveled import leveled
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import matrices
from nnopt_jax.tree.select import Where

_NAME = "quantization.mxfp4"


def mxfp4(
    *,
    where: Where = matrices,
    granularity: Granularity | None = None,
    group: int | None = None,
    axis: int | None = None,
) -> Transform:
    r"""Rounds weights to floats of 4 bits (E2M1) whose blocks share a power of two.

    .. math:: \hat w = 2^{e}\, l_c, \qquad e = \lfloor \log_2 \max_{block} |w| \rfloor - 2, \qquad
        c = \arg\min_k |2^{-e} w - l_k|

    4.25 bits a weight: exponents take 8 bits. Magnitudes above 6 units become 6, those halfway
    between two levels the smaller one. The gradient passes straight through. Entries that a mask
    of an earlier link prunes have no say in the exponents.

    Args:
        where: which leaves; default: those of two axes or more.
        granularity: which weights share an exponent: a number, see `group` (default: 32, as in the
            standard); `"channel"`, one for each index of the output axes; or `"tensor"`. Slots of
            one axis (a table that is quantized after sharing) take one exponent.
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
        >>> tx = nnopt.quantization.mxfp4(granularity="tensor")
        >>> params = {"kernel": jnp.array([[7.0, -1.1], [3.4, 0.2]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[ 6., -1.],
               [ 3.,  0.]], dtype=float32)

    References:
        Rouhani et al. 2023, OCP Microscaling Formats (MX) Specification 1.0, sections 5 and 6.3.
    """
    settings = Settings(_NAME)
    shared = sharing(settings, granularity, group, axis, default=32, even=True)
    settings.done()

    def fit(part: Blocked) -> jax.Array:
        return shared_exponent(block_largest(part.array, part.block, part.mask))

    return leveled(_NAME, E2M1, where, shared, fit=fit, scale=Powers)
