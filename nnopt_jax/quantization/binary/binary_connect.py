"""Signs of weights, drawn or decided."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.lookup_quantized import LookupQuantized
from nnopt_jax.arrays.refinement import Slot
from nnopt_jax.errors import ValueRangeError
from nnopt_jax.ops.grid import expand
from nnopt_jax.ops.lookup_tables import BINARY, nearest_level
from nnopt_jax.quantization.granularity import Sharing
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Start, Update, matrices
from nnopt_jax.transform.refining import refining
from nnopt_jax.tree.select import Where

_NAME = "quantization.binary_connect"


def binary_connect(
    *,
    where: Where = matrices,
    scale: float | Literal["glorot"] = 1.0,
    stochastic: bool = False,
) -> Transform:
    r"""Shows the signs of the weights, and keeps the weights between the signs.

    .. math:: \hat w = \pm H, \qquad
        \hat w = +H \text{ where } w \ge 0 \text{, or with probability }
        \mathrm{clip}\left(\frac{w / H + 1}{2},\; 0,\; 1\right)

    The gradient passes straight through; each update clips the weights to `[-H, H]`, beyond which
    they would have no effect (unless an earlier link encodes the leaf: the weights are then not
    this one's to move). There is no zero among the values: only a mask shows zeros. 1 bit a
    weight, and one scale a leaf.

    Args:
        where: which leaves; default: those of two axes or more.
        scale: `H`, a number above 0, or `"glorot"`: `sqrt(1.5 / (fan in + fan out))`, for
            networks without normalization. Fan in counts the indices of the contracted axes, fan
            out those of the output axes; of three contracted axes or more, as convolutions have
            them, all but the last count for fan out, too.
        stochastic: training draws the signs anew at each update (needs `tx.init(..., key=)`);
            what is applied and stored is decided by the sign. Running statistics of a
            normalization then belong to drawn signs: measure them anew with the decided ones.

    Returns:
        The transform. It refines: masks and tables above it stay.

    Raises:
        ValueRangeError: a setting is out of range; at `init`, where signs are drawn, without key.
        ShapeError: at `init`, where axes do not fit a leaf or, for `"glorot"`, are not known.
        CompositionError: at `init`, where a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.binary_connect()
        >>> params = {"kernel": jnp.array([[0.3, -2.0], [-0.1, 0.0]])}
        >>> state = tx.init(params)
        >>> tx.apply(params, state)["kernel"]
        Array([[ 1., -1.],
               [-1.,  1.]], dtype=float32)
        >>> tx.update(params, state)[0]["kernel"].min()
        Array(-1., dtype=float32)

    References:
        Courbariaux et al. 2015, BinaryConnect, sections 2.2 to 2.4; `"glorot"`: their code.
    """
    settings = Settings(_NAME)
    if isinstance(scale, str):
        settings.choice("scale", scale, ("glorot",))
    else:
        settings.number("scale", scale, 0, above=True)
    settings.flag("stochastic", stochastic)
    settings.done()

    def init(slot: Slot, start: Start) -> tuple[Any, Any]:
        rest = {"scale": jnp.full((1,) * slot.array.ndim, _height(slot, scale))}
        if not stochastic:
            return None, rest
        if start.key is None:
            raise ValueRangeError(
                f"{_NAME}: stochastic=True draws; give tx.init(params, key=jax.random.key(0))."
            )
        return None, {**rest, "key": start.key, "count": jnp.int32(0)}

    def encode(slot: Slot, learned: Any, rest: Any, train: bool) -> LookupQuantized:
        del learned
        x = slot.array
        codes = _drawn(x, rest) if stochastic and train else nearest_level(x, BINARY)
        return LookupQuantized(codes, rest["scale"], None, x, BINARY, str(x.dtype))

    def refresh(slot: Slot, learned: Any, rest: Any, now: Update) -> tuple[Any, Any]:
        del slot
        return learned, {**rest, "count": now.count}

    def settle(x: jax.Array, rest: Any) -> jax.Array:
        height = expand(rest["scale"], x.shape)
        return jnp.clip(x.astype(jnp.float32), -height, height).astype(x.dtype)

    return refining(
        _NAME,
        where,
        init=init,
        encode=encode,
        refresh=refresh if stochastic else None,
        settle=settle,
        check=Sharing("tensor").misfit,
        kinds=("value",),
        needs_axes=lambda slot: isinstance(scale, str) and slot.array.ndim > 1,
    )


def _height(slot: Slot, scale: float | str) -> jax.Array:
    if not isinstance(scale, str):
        return jnp.float32(scale)
    shape, axes = slot.array.shape, slot.axes
    roles = ((), tuple(range(len(shape)))) if axes is None else (axes.contracted, axes.output)
    inputs, outputs = (math.prod(shape[axis] for axis in role) for role in roles)
    if len(roles[0]) > 2:  # the authors' code: an input has a weight for each place of the kernel
        outputs *= math.prod(shape[axis] for axis in roles[0][:-1])
    return jnp.float32(math.sqrt(1.5 / max(inputs + outputs, 1)))


def _drawn(x: jax.Array, rest: Any) -> jax.Array:
    """Codes of signs drawn by the hard sigmoid, the same until the next update."""
    units = jax.lax.stop_gradient(x).astype(jnp.float32) / expand(rest["scale"], x.shape)
    chance = jnp.clip((units + 1) / 2, 0, 1)
    key = jax.random.fold_in(rest["key"], rest["count"])
    return (jax.random.uniform(key, x.shape) < chance).astype(jnp.float32)
