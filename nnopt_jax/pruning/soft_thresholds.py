"""Pruning by soft thresholds, which follow a target sparsity or are learned."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.masked import Masked, map_under_mask
from nnopt_jax.arrays.nodes import Field, is_node, materialize
from nnopt_jax.arrays.soft_thresholded import SoftThresholded
from nnopt_jax.ops.proximal_operators import shrink
from nnopt_jax.pruning.allocation import Allocation
from nnopt_jax.pruning.schedules import check_schedule, is_due, target
from nnopt_jax.pruning.selection import Selection, check_selection, largest_pruned
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import State, Transform
from nnopt_jax.transform.builders import wrapping
from nnopt_jax.transform.leaves import Leaves, Start, Update, matrices, refresh_when
from nnopt_jax.transform.presets import recorded
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import ArrayLike, ScalarOrSchedule

_NAME = "pruning.soft_threshold"
_LEARNED = "pruning.learned_threshold"


@recorded
def soft_threshold(
    sparsity: ScalarOrSchedule,
    *,
    where: Where = matrices,
    allocation: Allocation = "uniform",
    mode: Literal["soft", "frozen"] = "soft",
    every: int = 1,
) -> Transform:
    r"""Soft-threshold encoded weights so that exactly the scheduled fraction becomes zero.

    $$ \hat w = \operatorname{sign}(w) \max(|w| - t, 0) $$

    `t` is the largest magnitude to be pruned. The parameters themselves are not changed: an encoded
    weight grows from zero without a jump when its parameter passes the threshold, and the gradient
    passes straight through. (`pruning.proximal` moves the parameters themselves.)

    Args:
        sparsity: the fraction of zeros from 0 to 1, or a schedule of the number of updates.
        where: which leaves; by default those of two or more axes.
        allocation: `"uniform"`, `"erk"`, `"global"` (one threshold for all leaves), or a function
            `(shapes by path, sparsity) -> sparsities by path`.
        mode: `"soft"`: pruned weights get straight-through gradients and may return. `"frozen"`:
            they get no gradient, which is the derivative of the formula, and return only when the
            threshold falls.
        every: updates between two choices of the threshold.

    Returns:
        The transform. It wraps: later transforms of a chain keep its zeros, and share or quantize
        the encoded weights. Over codes or shared values of an earlier transform, it stores the
        threshold.

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
    how, sparsity = check_selection(settings, sparsity, allocation, None)
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
    """Return an array or node with a soft threshold applied, below any masks."""

    def change(x: Field) -> Field:
        return SoftThresholded(x, jnp.asarray(threshold)) if is_node(x) else shrink(x, threshold)

    return map_under_mask(leaf, change)


@dataclasses.dataclass(frozen=True)
class _SoftThreshold:
    """The settings of `soft_threshold`, and the functions of its transform."""

    how: Selection
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
        return self.how.counts(leaves, self.sparsity)

    def _choose(self, leaves: Leaves, share: Any) -> Leaves:
        levels = {path: jnp.abs(leaf.astype(jnp.float32)) for path, leaf in leaves.items()}
        masks = self.how.masks(levels, share)
        limits = largest_pruned(levels, masks, together=self.how.allocation == "global")
        return {
            path: {
                "mask": mask,
                "threshold": limits[path],
                "sparsity": jnp.asarray(share, jnp.float32),
            }
            for path, mask in masks.items()
        }


@recorded
def learned_threshold(
    *, start: float = -8.0, decay: ScalarOrSchedule = 0.0, where: Where = matrices
) -> Transform:
    r"""Shrink encoded weights by a threshold that is learned for each leaf (STR).

    $$ \hat w = \operatorname{sign}(w) \max(|w| - t, 0), \qquad t = \frac{1}{1 + e^{-s}} $$

    The optimizer trains `s` by its gradient, the sum of $-\operatorname{sign}(w) \, t (1 - t) \,
    \partial L / \partial \hat w$ over the weights beyond the threshold. Weights below the threshold
    get no gradient, and return only when it falls. Decay of `s` towards 0 raises the threshold,
    against the loss: more decay gives more zeros. Their number depends on data: call `pack` outside
    of `jax.jit`, or pass capacities.

    Args:
        start: the initial `s`, at most 0; -8 gives a threshold of 0.0003.
        decay: the fraction by which `s` decays at each update, 0 to 1, or a schedule of the number
            of updates (which should end early enough for the weights to converge); 0 leaves decay
            to the optimizer's weight decay, as in the paper.
        where: which leaves; by default those of two or more axes.

    Returns:
        The transform. It wraps: later transforms of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.pruning.learned_threshold(start=-1e-9)
        >>> params = {"kernel": jnp.array([[1.0, -3.0], [2.0, 0.25]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[ 0.5, -2.5],
               [ 1.5,  0. ]], dtype=float32)

    References:
        Kusupati et al. 2020, Soft Threshold Weight Reparameterization for Learnable Sparsity,
        section 3 (https://arxiv.org/abs/2002.03231).
    """
    settings = Settings(_LEARNED)
    settings.number("start", start, -1e4, 0)
    settings.share("decay", decay)
    check_schedule(settings, "decay", decay)
    settings.done()

    def init(leaves: Leaves, begin: Start) -> tuple[Leaves, Leaves]:
        del begin
        return {path: jnp.float32(start) for path in leaves}, dict.fromkeys(leaves)

    def encode(leaves: Leaves, state: State, train: bool) -> Leaves:
        del train
        shown = {}
        for path, leaf in leaves.items():
            threshold = jax.nn.sigmoid(state.learned[path])
            # With the comparison the other way round, NaN would count as below the threshold and go
            # unnoticed.
            beyond = ~(jnp.abs(materialize(leaf).astype(jnp.float32)) <= threshold)
            shown[path] = Masked(shrunk(leaf, threshold), jax.lax.stop_gradient(beyond))
        return shown

    def update(leaves: Leaves, state: State, now: Update) -> tuple[Leaves, Leaves]:
        del leaves
        kept = jnp.asarray(1 - target(decay, now.count), jnp.float32)
        return {path: s * kept for path, s in state.learned.items()}, state.rest

    return wrapping(_LEARNED, where, init=init, encode=encode, update=update)
