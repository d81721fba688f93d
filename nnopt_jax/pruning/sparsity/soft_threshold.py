"""Soft thresholds driven to a target sparsity."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from nnopt_jax.arrays.base import Field, is_node
from nnopt_jax.arrays.masked import Masked
from nnopt_jax.arrays.shrunk import Shrunk
from nnopt_jax.ops.proximal_operators import shrink
from nnopt_jax.pruning.allocation import Allocation
from nnopt_jax.pruning.masking import Layout, layout
from nnopt_jax.pruning.sparsity.thresholds import largest_gone
from nnopt_jax.pruning.timing import is_due, target
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import State, Transform
from nnopt_jax.transform.leaves import Leaves, Start, Update, matrices, refresh_when, wrapping
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import ArrayLike, ScalarOrSchedule

_NAME = "pruning.soft_threshold"


def soft_threshold(
    sparsity: ScalarOrSchedule,
    *,
    where: Where = matrices,
    allocation: Allocation = "uniform",
    mode: Literal["soft", "frozen"] = "soft",
    every: int = 1,
) -> Transform:
    r"""Shows weights moved towards zero by a threshold, exactly as many of them zero as asked for.

    .. math:: \hat w = \operatorname{sign}(w) \max(|w| - t, 0)

    `t` is the largest magnitude that has to go. The parameters stay as they are: what is shown
    grows from zero when a weight passes the threshold, without a jump, and the gradient passes
    straight through. (`pruning.proximal` moves the parameters themselves.)

    Args:
        sparsity: the share of zeros from 0 to 1, or a schedule of the number of updates.
        where: which leaves; default: those of two axes or more.
        allocation: `"uniform"`, `"erk"`, `"global"` (one threshold for all leaves), or
            `(shapes by path, sparsity) -> sparsities by path`.
        mode: `"soft"`: pruned weights go on learning, straight through, and may return.
            `"frozen"`: they get no gradient, as the derivative of the formula says, and return
            only when the threshold falls.
        every: updates between two choices of the threshold.

    Returns:
        The transform. It wraps: later links of a chain keep its zeros, and share or quantize what
        is shown. Over codes or shared values of an earlier link it stores the threshold.

    Raises:
        ValueRangeError: a setting is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.pruning.soft_threshold(0.5)
        >>> params = {"kernel": jnp.array([[1.0, -3.0], [2.0, 0.5]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[ 0., -2.],
               [ 1.,  0.]], dtype=float32)

    References:
        Donoho 1995, De-noising by Soft-Thresholding, section 1
        (https://doi.org/10.1109/18.382009).
    """
    settings = Settings(_NAME)
    how, sparsity = layout(settings, sparsity, allocation, None)
    settings.choice("mode", mode, ("soft", "frozen"))
    settings.integer("every", every, 1)
    if allocation == "lamp":
        settings.wrong("allocation", allocation, "has no threshold of its own; give 'global'.")
    settings.done()
    way = _SoftThreshold(how, sparsity, "straight_through" if mode == "soft" else "select", every)
    return wrapping(
        _NAME,
        where,
        init=way.init,
        encode=way.encode,
        update=way.update,
        capacities=way.counts,
    )


def shrunk(leaf: Field, threshold: ArrayLike) -> Field:
    """The soft threshold of a leaf: an array of an array, a node over a node, below its mask."""
    if isinstance(leaf, Masked):  # zero stays zero, and masks on top of one another are one
        return leaf.replace(values=shrunk(leaf.values, threshold))
    return Shrunk(leaf, jnp.asarray(threshold)) if is_node(leaf) else shrink(leaf, threshold)


@dataclasses.dataclass(frozen=True)
class _SoftThreshold:
    """The functions of the transform, made of settings that are checked."""

    how: Layout
    sparsity: Any
    mode: str
    every: int

    def init(self, leaves: Leaves, start: Start) -> tuple[Leaves, Leaves]:
        del start
        return {}, self._choose(leaves, target(self.sparsity, 0))

    def update(self, leaves: Leaves, state: State, now: Update) -> tuple[Leaves, Leaves]:
        held = next(iter(state.rest.values()))["sparsity"]
        due = is_due(self.every, self.sparsity, now.count, held)
        share = target(self.sparsity, now.count)
        return {}, refresh_when(due, lambda: self._choose(leaves, share), state.rest)

    def encode(self, leaves: Leaves, state: State, train: bool) -> Leaves:
        del train
        known: Leaves = {} if callable(self.sparsity) else self.counts(leaves)
        return {
            path: Masked(
                shrunk(leaf, state.rest[path]["threshold"]),
                state.rest[path]["mask"],
                known.get(path),
                self.mode,
            )
            for path, leaf in leaves.items()
        }

    def counts(self, leaves: Leaves) -> dict[str, int]:
        return self.how.counted(leaves, self.sparsity)

    def _choose(self, leaves: Leaves, share: Any) -> Leaves:
        levels = {path: jnp.abs(leaf.astype(jnp.float32)) for path, leaf in leaves.items()}
        masks = self.how.masks(levels, share)
        limits = largest_gone(levels, masks, together=self.how.allocation == "global")
        return {
            path: {
                "mask": mask,
                "threshold": limits[path],
                "sparsity": jnp.asarray(share, jnp.float32),
            }
            for path, mask in masks.items()
        }
