"""What quantizers share whose state is fitted to the weights, block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from nnopt_jax.arrays.base import Node
from nnopt_jax.arrays.slots import Slot
from nnopt_jax.quantization.granularity import Granularity, block_of, misfit
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Update, refresh_when
from nnopt_jax.transform.refining import refining
from nnopt_jax.tree.select import Where

Fit = Callable[[jax.Array, Sequence[int], jax.Array | None], Any]
"""`(array, block, mask) -> state`; the mask tells which entries have a say."""


def fitted(
    name: str,
    where: Where,
    granularity: Granularity,
    axis: int,
    *,
    fit: Fit,
    encode: Callable[[jax.Array, Any], Node],
    every: int = 1,
    exact: bool = True,
) -> Transform:
    """Makes a quantizer without learned arrays, of settings that are checked.

    Args:
        name: the method's public name.
        where: which leaves; see `nnopt_jax.tree.selector`.
        granularity: which weights share a state; see `Granularity`.
        axis: the channel axis.
        fit: makes the state, at `init` and after updates.
        encode: `(array, state) -> expression`.
        every: updates between two fits.
        exact: see `Transform`.

    Returns:
        The transform. It refines values, and refuses what is quantized already.
    """

    def fit_slot(slot: Slot) -> Any:
        return fit(slot.array, block_of(slot.array.shape, granularity, axis), slot.mask)

    def refresh(slot: Slot, learned: Any, state: Any, now: Update) -> tuple[Any, Any]:
        due = every == 1 or now.count % every == 0
        return learned, refresh_when(due, lambda: fit_slot(slot), state)

    return refining(
        name,
        where,
        init=lambda slot, start: (None, fit_slot(slot)),
        encode=lambda slot, learned, state, train: encode(slot.array, state),
        refresh=refresh,
        check=lambda slot: misfit(slot.array.shape, granularity, axis),
        kinds=("value",),
        exact=exact,
    )
