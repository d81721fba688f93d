"""What quantizers share whose state is fitted to the weights, block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnopt_jax.arrays.nodes import Node
from nnopt_jax.arrays.refinement import Slot
from nnopt_jax.quantization.granularity import Blocked, Sharing
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Update, refresh_when
from nnopt_jax.transform.refining import refining
from nnopt_jax.tree.select import Where

Fit = Callable[[Blocked], Any]
"""`blocked -> state`; the mask of what is blocked says which entries have a say."""


def fitted(
    name: str,
    where: Where,
    sharing: Sharing,
    *,
    fit: Fit,
    encode: Callable[[Blocked, Any], Node],
    every: int = 1,
    exact: bool = True,
) -> Transform:
    """Makes a quantizer without learned arrays, of settings that are checked.

    Args:
        name: the method's public name.
        where: which leaves; see `nnopt_jax.tree.selector`.
        sharing: which weights share a state.
        fit: makes the state, at `init` and after updates.
        encode: `(blocked, state) -> expression` of the blocked array.
        every: updates between two fits.
        exact: see `Transform`.

    Returns:
        The transform. It refines values, and refuses what is quantized already.
    """

    def fit_slot(slot: Slot) -> Any:
        return fit(sharing.blocked(slot))

    def encode_slot(slot: Slot, learned: Any, state: Any, train: bool) -> Node:
        del learned, train
        part = sharing.blocked(slot)
        return part.in_place(encode(part, state))

    def refresh(slot: Slot, learned: Any, state: Any, now: Update) -> tuple[Any, Any]:
        due = every == 1 or now.count % every == 0
        return learned, refresh_when(due, lambda: fit_slot(slot), state)

    return refining(
        name,
        where,
        init=lambda slot, start: (None, fit_slot(slot)),
        encode=encode_slot,
        refresh=refresh,
        check=sharing.misfit,
        kinds=("value",),
        exact=exact,
        needs_axes=sharing.needs_axes,
    )
