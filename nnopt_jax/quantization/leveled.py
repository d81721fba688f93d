"""What all quantizers to fixed levels share: scales of blocks, nearest levels, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from nnopt_jax.arrays.lookup_quantized import LookupQuantized
from nnopt_jax.arrays.nodes import Field, show
from nnopt_jax.ops.block_formats import in_units
from nnopt_jax.ops.lookup_tables import nearest_level
from nnopt_jax.quantization.fitted import Fit, fitted
from nnopt_jax.quantization.granularity import Blocked, Sharing
from nnopt_jax.transform.base import Transform
from nnopt_jax.tree.select import Where


def leveled(
    name: str,
    levels: tuple[float, ...],
    where: Where,
    sharing: Sharing,
    *,
    fit: Fit,
    scale: Callable[[Any], Field] = lambda state: state,
    carry: Callable[[Blocked, Any], jax.Array] = lambda part, state: part.array,
    exact: bool = True,
) -> Transform:
    """Makes a transform that brings weights to fixed levels times a scale for each block.

    Args:
        name: the method's public name.
        levels: ascending.
        where: which leaves; see `nnopt_jax.tree.selector`.
        sharing: which weights share a scale.
        fit: `blocked -> state`; anew after each update.
        scale: `state -> scale`, as it is stored.
        carry: `(blocked, state) -> array` that takes the gradient.
        exact: see `Transform`.

    Returns:
        The transform.
    """

    def encode(part: Blocked, state: Any) -> LookupQuantized:
        x, scales = part.array, part.field(scale(state))
        codes = nearest_level(in_units(x, show(scales)), levels)
        return LookupQuantized(codes, scales, None, carry(part, state), levels, str(x.dtype))

    return fitted(name, where, sharing, fit=fit, encode=encode, exact=exact)
