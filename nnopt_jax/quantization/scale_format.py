"""The storage format of scales."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from nnopt_jax.arrays.integer_quantized import Quantized
from nnopt_jax.arrays.nodes import Field
from nnopt_jax.arrays.scales import Powers
from nnopt_jax.errors import ScaleError
from nnopt_jax.ops.axis_roles import Axes
from nnopt_jax.ops.block_formats import block_largest, shared_exponent, stored_scale
from nnopt_jax.ops.grid import quantize

__all__ = ["ScaleFormat"]

_TOP = 255  # the greatest code of a quantized scale
_MOST = 256  # the most scales that share a second scale, as in QLoRA


@dataclasses.dataclass(frozen=True)
class ScaleFormat:
    """The format in which the scales of blocks are stored and applied.

    Args:
        dtype: the dtype of the scales or, if scales are quantized, of their own scales.
        is_double: whether scales are themselves quantized to 8 bits.
        is_power: whether scales are powers of two (E8M0).

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.quantization.scale_format import ScaleFormat
        >>> ScaleFormat("float16").fit(jnp.array([[3.0]]), 6.0, None)
        Array([[0.5]], dtype=float16)
    """

    dtype: Any
    is_double: bool = False
    is_power: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether scales are stored as floats."""
        return not (self.is_double or self.is_power)

    def fit(self, reach: jax.Array, top: float, axes: Axes | None) -> Any:
        """Return the scale of each block, in storage form, for the magnitude it must represent.

        Args:
            reach: float32, the greatest magnitude that each block must represent.
            top: the greatest value of the grid, in units of the scale.
            axes: the axes of the array of scales, along whose output axes second scales are shared.
        """
        if self.is_power:
            return _exponent(reach, top)
        scale = reach if top == 1.0 else reach * jnp.float32(1 / top)
        if not self.is_double:
            self.check_range(reach, top)
            return stored_scale(scale, self.dtype)
        scale = stored_scale(scale)
        step = block_largest(scale, _runs(scale.shape, axes)) * jnp.float32(1 / _TOP)
        step = stored_scale(jnp.where(step > 0, step, jnp.float32(1)), self.dtype)
        return {"codes": quantize(scale, step, None, 0, _TOP), "step": step}

    def field(self, state: Any) -> Field:
        """Return scales as a field of a quantized node."""
        if self.is_power:
            return Powers(state)
        if self.is_double:
            return Quantized(state["codes"], state["step"], low=0, high=_TOP)
        return state

    def check_range(self, reach: jax.Array | Callable[[], jax.Array], top: float) -> None:
        """Raise if scales with known values underflow or overflow in their dtype.

        Raises:
            ScaleError: a nonzero scale would be stored as 0, or a finite one as a smaller one, so
                that the largest weights would be clipped.
        """
        if jnp.dtype(self.dtype) != jnp.float16:  # others have the range of float32
            return
        reach = reach() if callable(reach) else reach
        if isinstance(reach, Tracer):
            return
        scale = np.asarray(reach, np.float32) / np.float32(top)
        most = np.float32(np.finfo(np.float16).max)
        above = (scale > most) & np.isfinite(scale)  # a broken weight has a scale of 1
        if above.any():
            raise ScaleError(
                f"{above.sum():,} of {above.size:,} blocks have scales up to "
                f"{scale[above].max():.3g}, which overflow in float16 (greatest: {most:,.0f}); "
                "give scale_dtype='bfloat16' or 'float32'"
            )
        lost = (scale > 0) & (np.minimum(scale, most).astype(np.float16) == 0)
        if lost.any():
            raise ScaleError(
                f"{lost.sum():,} of {lost.size:,} blocks have scales down to "
                f"{scale[lost].min():.3g}, which underflow in float16 (least: 5.96e-08); give "
                "scale_dtype='bfloat16' or 'float32'"
            )


def _exponent(reach: jax.Array, top: float) -> jax.Array:
    """Return the exponents of scales that are powers of two, as codes of E8M0.

    The MX specification rounds exponents down, so that the greatest value of E2M1, 1.5 powers of
    two, clips a quarter of the largest weight at most. If the greatest value is a power of two
    itself, as in NF4, rounding down would clip up to half of it, so exponents are rounded up.
    """
    exponent = math.floor(math.log2(top))
    if top != 2.0**exponent:
        return shared_exponent(reach, exponent)
    # A broken weight must not spoil the other weights of its block: its scale is 1.
    reach = jnp.where(jnp.isfinite(reach), reach, jnp.float32(top))
    # Rounding up is rounding the next smaller float down, and adding one.
    below = jnp.nextafter(reach, jnp.zeros_like(reach))
    return jnp.minimum(shared_exponent(below, exponent - 1), jnp.uint8(254))  # 255 is NaN in E8M0


def _runs(shape: tuple[int, ...], axes: Axes | None) -> tuple[int, ...]:
    """Return the longest blocks of scales, along output axes, that share a second scale.

    If there is only one output, blocks run along the contracted axes. They never cross batch axes,
    so that each layer of a stack keeps its own scales.
    """
    if 0 in shape:
        return shape
    along = tuple(range(len(shape)))
    if axes is not None:
        several = any(shape[axis] > 1 for axis in axes.output)
        along = axes.output if several else axes.contracted
    block, room = [1] * len(shape), _MOST
    for axis in reversed(along):
        size = shape[axis]
        block[axis] = max(n for n in range(1, min(room, size) + 1) if size % n == 0)
        if block[axis] < size:
            break
        room //= size
    return tuple(block)
