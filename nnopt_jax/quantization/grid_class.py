"""The class of grids: the values that a weight may take, in units of a scale."""

from __future__ import annotations

import dataclasses
import itertools
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.integer_quantized import Quantized
from nnopt_jax.arrays.lookup_quantized import LookupQuantized
from nnopt_jax.arrays.nodes import Field, Node
from nnopt_jax.columns import clipped
from nnopt_jax.ops.block_formats import in_units
from nnopt_jax.ops.grid import expand, integer_range, quantize
from nnopt_jax.ops.lookup_tables import level_values, nearest_level
from nnopt_jax.quantization.granularity import Granularity
from nnopt_jax.settings import Settings, is_whole


@dataclasses.dataclass(frozen=True)
class Grid:
    """The values that a weight may take, in units of the scale of its block.

    Args:
        name: the name in `repr`, errors and recipes.
        low: the least code.
        high: the greatest code.
        levels: the values of the codes 0, 1, ..., ascending; None if each code stands for itself.
        has_zero_point: whether a block has an integer zero point.
        settings: the settings by name, for `repr`.
        check: a function that adds problems with the settings to those of the method.
        granularity: the default granularity; a number is a group size.
        whole_groups: whether the format requires groups of equal size.
        range: the default choice of the range.
        scale_dtype: the default dtype of scales; None for float16 with groups and float32
            otherwise.
        dtypes: the dtypes of scales that the format supports; empty for any.

    Raises:
        ValueRangeError: codes, values and defaults do not fit together.

    Example:
        >>> import nnopt_jax as nnopt
        >>> grid = nnopt.quantization.Grid("halves", 0, 2, levels=(-1.0, 0.5, 1.0))
        >>> grid.top, grid
        (1.0, halves())
    """

    name: str
    low: int
    high: int
    levels: tuple[float, ...] | None = None
    has_zero_point: bool = False
    settings: tuple[tuple[str, Any], ...] = ()
    check: Callable[[Settings], None] | None = dataclasses.field(default=None, compare=False)
    granularity: Granularity = "tensor"
    whole_groups: bool = False
    range: str = "absmax"
    scale_dtype: str | None = None
    dtypes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise if codes, values and defaults do not fit together.

        Raises:
            ValueRangeError: the error names all problems.
        """
        is_named = isinstance(self.name, str) and bool(self.name)
        settings = Settings(self.name if is_named else "Grid")
        if not is_named:
            settings.wrong("name", self.name, "is not a name.")
        settings.flag("has_zero_point", self.has_zero_point)
        if not (is_whole(self.granularity) and self.granularity > 0):
            if is_whole(self.granularity):
                settings.wrong("granularity", self.granularity, "is not a group size of 1 or more.")
            else:
                settings.choice("granularity", self.granularity, ("tensor", "channel"))
        (self._check_integers if self.levels is None else self._check_levels)(settings)
        settings.done()

    def _check_integers(self, settings: Settings) -> None:
        """Record the problems of a grid of integers."""
        for name, code in (("low", self.low), ("high", self.high)):
            settings.integer(name, code, -(2**15), 2**15 - 1)
        if not (is_whole(self.low) and is_whole(self.high)):
            return
        if self.low >= self.high:
            settings.wrong("low", self.low, f"is not below high={self.high}.")
        elif self.high <= 0:
            settings.wrong("high", self.high, "is not above 0.")
        elif self.has_zero_point is True and not self.fills_bits:
            settings.wrong("has_zero_point", True, "needs all integers of some number of bits, "
                                                   "such as -8 to 7.")  # fmt: skip

    def _check_levels(self, settings: Settings) -> None:
        """Record the problems of a grid that lists its values."""
        if not are_levels(self.levels):
            text = "are not 2 to 256 ascending numbers, the last of them above 0."
            settings.wrong("levels", self.levels, text)
        elif (self.low, self.high) != (0, len(self.levels or ()) - 1):
            high = len(self.levels or ()) - 1
            settings.wrong("levels", self.levels, f"have the codes low=0 to high={high}.")
        if self.has_zero_point is True:
            settings.wrong("has_zero_point", True, "goes only with integers, and levels are given.")

    def __repr__(self) -> str:
        """Return the name and the settings in the form of a call."""
        pairs = ", ".join(f"{key}={value!r}" for key, value in self.settings)
        return clipped(f"{self.name}({pairs})")

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest value, in units of the scale."""
        if self.levels is None:
            return float(self.low), float(self.high)
        return self.levels[0], self.levels[-1]

    @property
    def top(self) -> float:
        """The greatest value, in units of the scale."""
        return self.ends[1]

    @property
    def values_above_zero(self) -> int:
        """The number of values that are greater than zero."""
        return self.high if self.levels is None else sum(level > 0 for level in self.levels)

    @property
    def bits(self) -> int:
        """The bits of a code."""
        return max((self.high - self.low).bit_length(), 1)

    @property
    def fills_bits(self) -> bool:
        """Whether the codes are all integers of `bits` bits, with or without the lowest."""
        if self.levels is not None or not 2 <= self.bits <= 16:
            return False
        low, high = integer_range(self.bits, symmetric=False)
        lows = (low,) if self.has_zero_point else (low, -high)
        return self.high == high and self.low in lows

    def units(self, x: jax.Array, scale: jax.Array, zero: jax.Array | None) -> jax.Array:
        """Return weights in units of the grid, before rounding, without gradients."""
        if self.levels is not None:
            return in_units(x, scale)
        v = jax.lax.stop_gradient(x).astype(jnp.float32)
        v = v / expand(scale, x.shape).astype(jnp.float32)
        return v if zero is None else v + expand(zero, x.shape)

    def nearest(self, x: jax.Array, scale: jax.Array, zero: jax.Array | None) -> jax.Array:
        """Return the code of the nearest value, held in float32; NaN where a weight is NaN."""
        if self.levels is not None:
            return nearest_level(in_units(x, scale), self.levels)
        return quantize(jax.lax.stop_gradient(x), scale, zero, self.low, self.high)

    def between(
        self, x: jax.Array, scale: jax.Array, zero: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Return the code of the value below a weight, and the fraction of the way to the next.

        Returns:
            `(code, fraction)`, float32; the fraction is from 0 to 1, and both are clipped to the
            grid.
        """
        v = self.units(x, scale, zero)
        if self.levels is None:
            below = jnp.clip(jnp.floor(v), self.low, self.high - 1)
            return below, jnp.clip(v - below, 0, 1)
        levels = jnp.asarray(self.levels, jnp.float32)
        below = sum((v >= level).astype(jnp.float32) for level in self.levels[1:-1])
        at = jnp.asarray(below, jnp.int32)
        gap = levels[at + 1] - levels[at]
        return jnp.where(jnp.isnan(v), v, below), jnp.clip((v - levels[at]) / gap, 0, 1)

    def values(self, codes: jax.Array) -> jax.Array:
        """Return the values of codes, in units of the scale."""
        return codes if self.levels is None else level_values(codes, self.levels)

    def gap(self, codes: jax.Array) -> jax.Array:
        """Return the distance between neighboring values around each code, in units of scale."""
        if self.levels is None:
            return jnp.ones_like(codes)
        steps = [b - a for a, b in itertools.pairwise(self.levels)]
        around = jnp.asarray([steps[0], *steps], jnp.float32)
        return around[jnp.nan_to_num(codes).astype(jnp.int32)]

    def inside(self, x: jax.Array, scale: jax.Array, zero: jax.Array | None) -> jax.Array:
        """Return which weights lie in the range of the grid, up to the rounding of its ends.

        The ends of a range need not lie within its grid, because the zero point is rounded, by up
        to half a step, and the scale is rounded to its dtype. Weights that the range was fitted to
        must keep their gradient.
        """
        low, high = self.ends
        v, rounding = self.units(x, scale, zero), float(jnp.finfo(scale.dtype).eps) * (high - low)
        steps = (1.0, 1.0)
        if self.levels is not None:
            steps = self.levels[1] - self.levels[0], self.levels[-1] - self.levels[-2]
        return (low - 0.5 * steps[0] - rounding <= v) & (v <= high + 0.5 * steps[1] + rounding)

    def node(
        self,
        codes: jax.Array,
        scale: Field,
        zero: Field | None,
        carry: jax.Array,
        dtype: Any,
        below: Field | None = None,
    ) -> Node:
        """Return the node of quantized weights, a packed parameter.

        Args:
            codes: as `nearest` returns them.
            scale: the scales of the blocks.
            zero: zero points, if the grid has them.
            carry: the straight-through residual, which receives the gradient.
            dtype: the dtype of the weights.
            below: a scale of its own for values below zero, or None.
        """
        if self.levels is None:
            return Quantized(codes, scale, zero, carry, self.low, self.high, str(dtype))
        return LookupQuantized(codes, scale, below, carry, self.levels, str(dtype))


def are_levels(levels: Any) -> bool:
    """Return whether a value lists 2 to 256 ascending, finite numbers, the last above 0.

    Numbers must differ as float32, in which values are compared.

    Example:
        >>> are_levels((-1.0, 0.0, 1.0)), are_levels((0.0, 1.0, 1.0))
        (True, False)
    """
    if not isinstance(levels, Sequence) or isinstance(levels, str | bytes):
        return False
    if not 2 <= len(levels) <= 256:
        return False
    if not all(isinstance(x, numbers.Real) and not isinstance(x, bool) for x in levels):
        return False
    most = float(np.finfo(np.float32).max)
    if not all(abs(float(x)) <= most for x in levels):  # False for NaN and infinity
        return False
    singles = np.asarray([float(x) for x in levels], np.float32)
    return bool((singles[1:] > singles[:-1]).all() and singles[-1] > 0)
