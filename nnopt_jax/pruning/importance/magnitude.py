"""Pruning by magnitude."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.base import Field, is_node
from nnopt_jax.arrays.masked import Masked
from nnopt_jax.errors import ValueRangeError
from nnopt_jax.ops.threshold import top_k_masks
from nnopt_jax.transform.base import State, Transform
from nnopt_jax.transform.leaves import Leaves, Update, matrices, refresh_when, wrapping
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import ScalarOrSchedule

_NAME = "pruning.magnitude"
_LATE = 2**30  # a step at which every schedule has arrived


def magnitude(
    sparsity: ScalarOrSchedule,
    *,
    where: Where = matrices,
    scope: Literal["leaf", "global"] = "leaf",
    mode: Literal["hard", "soft"] = "hard",
    every: int | None = 1,
) -> Transform:
    r"""Keeps the weights of greatest magnitude, exactly as many as the sparsity says.

    .. math:: \hat w_i = w_i \, [\, |w_i| \text{ is among the } k \text{ greatest} \,],
        \qquad k = \mathrm{round}((1 - s)\, n)

    Of equal magnitudes the earlier ones are kept.

    Args:
        sparsity: `s`, the share of zeros from 0 to 1, or an `optax.Schedule` of the number of
            updates made.
        where: which leaves; default: those of two axes or more.
        scope: `"leaf"`: `s` holds in each leaf. `"global"`: one threshold over all of them, so
            that `s` holds in total; how many a leaf keeps then depends on data.
        mode: `"hard"`: each update sets the pruned parameters to zero and the forward pass costs
            nothing (before the first update the model sees them still). `"soft"`: the mask is in
            the forward pass, and pruned weights go on learning, straight through, and may return.
        every: updates between two choices of the mask. A scheduled sparsity that has arrived is
            put in force at once. None: the mask of `init` stays, and where it is hard it costs no
            pass of its own, because it joins the optimizer's.

    Returns:
        The transform. It wraps: later links of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.pruning.magnitude(0.75)
        >>> params = {"kernel": jnp.array([[0.1, -2.0], [0.3, 0.2]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[ 0., -2.],
               [ 0.,  0.]], dtype=float32)

    References:
        Han et al. 2015, Learning both Weights and Connections, section 3; schedules: Zhu and
        Gupta 2017, To prune, or not to prune, section 3.
    """
    _check(sparsity, scope, mode, every)
    period = every or 1  # of no account where the mask stays

    def target(count: jax.Array | int) -> jax.Array | float:
        return jnp.clip(sparsity(count), 0.0, 1.0) if callable(sparsity) else sparsity

    def masks(leaves: Leaves, share: jax.Array | float) -> Leaves:
        scores = {path: jnp.abs(leaf) for path, leaf in leaves.items()}
        if scope == "leaf":
            return {p: top_k_masks([x], _kept(x.size, share))[0] for p, x in scores.items()}
        total = sum(x.size for x in scores.values())
        return dict(zip(scores, top_k_masks([*scores.values()], _kept(total, share)), strict=True))

    def fresh(leaves: Leaves, share: jax.Array | float) -> Leaves:
        now = jnp.asarray(share, jnp.float32)
        return {p: {"mask": mask, "sparsity": now} for p, mask in masks(leaves, share).items()}

    def init(leaves: Leaves, key: jax.Array | None) -> tuple[Leaves, Leaves]:
        del key
        return {}, fresh(leaves, target(0))

    def update(leaves: Leaves, state: State, now: Update) -> tuple[Leaves, Leaves]:
        share = target(now.count)
        needed: Any = period == 1 or now.count % period == 0
        if callable(sparsity) and period > 1:
            held = next(iter(state.rest.values()))["sparsity"]
            needed |= (held != share) & (target(now.count + 1) == share)
        return {}, refresh_when(needed, lambda: fresh(leaves, share), state.rest)

    def encode(leaf: Field, learned: Any, rest: Any, train: bool) -> Masked:
        del learned
        kept = None if callable(sparsity) or scope == "global" else _kept(leaf.size, sparsity)
        if mode == "soft":
            return Masked(leaf, rest["mask"], kept, "straight_through")
        applied = train and not is_node(leaf)
        return Masked(leaf, rest["mask"], kept, "applied" if applied else "select")

    def settle(leaf: jax.Array, rest: Any) -> jax.Array:
        return jnp.where(rest["mask"], leaf, jnp.zeros((), leaf.dtype))

    def capacity(path: str, leaf: Any) -> int | None:
        del path
        return None if scope == "global" else int(_kept(leaf.size, target(_LATE)))

    return wrapping(
        _NAME,
        where,
        init=init,
        encode=encode,
        update=None if every is None else update,
        settle=settle if mode == "hard" else None,
        capacities=capacity,
    )


def _kept(size: int, share: jax.Array | float) -> Any:
    """How many of `size` entries are kept: static where the share is."""
    if isinstance(share, (int, float)):
        return round(size * (1.0 - share))
    return jnp.round(size * (1.0 - share)).astype(jnp.int32)


def _check(sparsity: Any, scope: str, mode: str, every: int | None) -> None:
    if not callable(sparsity) and not 0.0 <= sparsity <= 1.0:
        raise ValueRangeError(f"{_NAME}: sparsity={sparsity!r} is not between 0 and 1.")
    if scope not in ("leaf", "global"):
        raise ValueRangeError(f"{_NAME}: scope={scope!r} is neither 'leaf' nor 'global'.")
    if mode not in ("hard", "soft"):
        raise ValueRangeError(f"{_NAME}: mode={mode!r} is neither 'hard' nor 'soft'.")
    if every is None and callable(sparsity):
        raise ValueRangeError(
            f"{_NAME}: every=None keeps the first mask, but sparsity is a schedule, which changes "
            "it; give every=1 or more."
        )
    if every is not None and every < 1:
        raise ValueRangeError(f"{_NAME}: every={every!r} is not a number of updates, 1 or more.")
