"""What all quantizers to fixed levels share: scales of blocks, nearest levels, gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from nnopt_jax.arrays.base import Field, Slot, show
from nnopt_jax.arrays.levels import Levels
from nnopt_jax.ops.block_formats import in_units
from nnopt_jax.ops.levels import nearest_level
from nnopt_jax.quantization.granularity import Granularity, block_of, check_granularity, misfit
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Update, refining
from nnopt_jax.tree.select import Where


def leveled(
    name: str,
    levels: tuple[float, ...],
    where: Where,
    granularity: Granularity,
    axis: int,
    *,
    fit: Callable[[jax.Array, Sequence[int], jax.Array | None], Any],
    scale: Callable[[Any], Field] = lambda fitted: fitted,
    codes: Callable[[jax.Array, Any], jax.Array] | None = None,
    carry: Callable[[jax.Array, Any], jax.Array] = lambda x, fitted: x,
    exact: bool = True,
) -> Transform:
    """Makes a transform that brings weights to fixed levels times a scale for each block.

    Args:
        name: the method's public name.
        levels: ascending.
        where: which leaves; see `nnopt_jax.tree.selector`.
        granularity: which weights share a scale; see `Granularity`.
        axis: the channel axis.
        fit: `(array, block, mask) -> state`; anew after each update.
        scale: `state -> scale`, as it is stored.
        codes: `(array, state) -> indices of levels`; default: the nearest level in units of the
            scale.
        carry: `(array, state) -> array` that takes the gradient.
        exact: see `Transform`.

    Returns:
        The transform.

    Raises:
        ValueRangeError: the granularity or the axis is out of range.
    """
    settings = Settings(name)
    check_granularity(settings, granularity, axis)
    settings.done()

    def fit_slot(slot: Slot) -> Any:
        return fit(slot.array, block_of(slot.array.shape, granularity, axis), slot.mask)

    def encode(slot: Slot, learned: Any, fitted: Any, train: bool) -> Levels:
        del learned, train
        x, scales = slot.array, scale(fitted)
        if codes is None:
            indices = nearest_level(in_units(x, show(scales)), levels)
        else:
            indices = codes(x, fitted)
        return Levels(indices, scales, None, carry(x, fitted), levels, str(x.dtype))

    def refresh(slot: Slot, learned: Any, fitted: Any, now: Update) -> tuple[Any, Any]:
        del fitted, now
        return learned, fit_slot(slot)

    return refining(
        name,
        where,
        init=lambda slot, start: (None, fit_slot(slot)),
        encode=encode,
        refresh=refresh,
        check=lambda slot: misfit(slot.array.shape, granularity, axis),
        kinds=("value",),
        exact=exact,
    )
