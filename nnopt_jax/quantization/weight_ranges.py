"""Ranges: how the scale of a block of weights is chosen."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.nodes import Field, Node, materialize
from nnopt_jax.ops.block_formats import block_largest
from nnopt_jax.ops.blockwise import reduce_blocks, repeat_uneven
from nnopt_jax.ops.gradient_estimators import gate, straight_through
from nnopt_jax.ops.grid import expand, fit_grid, grid_of_range
from nnopt_jax.ops.range_search import least_squares_factor, mse_range, percentile_range
from nnopt_jax.quantization.granularity import Blocked
from nnopt_jax.quantization.grids import Grid
from nnopt_jax.quantization.scale_format import ScaleFormat
from nnopt_jax.settings import Settings

__all__ = ["WeightRange", "absmax", "learned", "mse", "percentile"]


class Task(NamedTuple):
    """The inputs of a range: the grid, the weights and the format of scales.

    Args:
        grid: the values that weights may take.
        part: the weights, in blocks.
        scales: the storage format of scales.
        is_current: whether the range is chosen again at every update.
    """

    grid: Grid
    part: Blocked
    scales: ScaleFormat
    is_current: bool = True


class Scaled(NamedTuple):
    """The scales and zero points of the blocks, as a quantized node stores them.

    Args:
        scale: positive scales.
        zero: zero points; None if the grid has none.
        below: a scale of its own for values below zero, or None.
    """

    scale: Field
    zero: Field | None = None
    below: Field | None = None


@dataclasses.dataclass(frozen=True)
class WeightRange:
    """The base of all ranges, which choose the scale of each block.

    The state of a range is a pair of the arrays that the optimizer learns and other arrays.
    """

    name: ClassVar[str] = "absmax"
    is_exact: ClassVar[bool] = True
    """Whether the range is bit-equal on any mesh, unlike one that depends on sums."""
    has_codes: ClassVar[bool] = False
    """Whether the range rounds by a rule of its own."""
    never_clips: ClassVar[bool] = True
    """Whether a newly chosen range contains all weights."""
    needs_plain_scales: ClassVar[bool] = False
    """Whether scales must be floats, because they do not follow from a magnitude."""
    projects: ClassVar[bool] = False
    """Whether updates move the parameters, by `project`."""

    def __repr__(self) -> str:
        """Return the name and the settings in the form of a call."""
        fields = dataclasses.fields(self)
        return f"{self.name}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in fields)})"

    def check(self, settings: Settings, grid: Grid) -> None:
        """Record problems with the settings, alone and in combination with the grid."""

    def needs_axes(self, ndim: int) -> bool:
        """Return whether the range depends on the axes of an array of this rank."""
        del ndim
        return False

    def init(self, task: Task) -> tuple[Any, Any]:
        """Choose the initial range; return the learned and the other arrays."""
        return None, self.fit(task)

    def refresh(self, task: Task, learned: Any, rest: Any) -> tuple[Any, Any]:
        """Choose the range again after an update."""
        del rest
        return learned, self.fit(task)

    def fit(self, task: Task) -> Any:
        """Choose the range of each block; return the scales in their storage form."""
        grid, part, scales = task.grid, task.part, task.scales
        if grid.levels is not None or not scales.is_plain:
            return scales.fit(self.reach(task), grid.top, part.axes)
        if grid.fills_bits:
            scale, zero = self.integers(task)
        else:
            scale, zero = scales.fit(self.reach(task), grid.top, part.axes), None
        return {"scale": scale, "zero": zero}

    def integers(self, task: Task) -> tuple[jax.Array, jax.Array | None]:
        """Return scale and zero point of a grid whose codes are all integers of some bit width."""
        bottom, top = self.interval(task)
        grid, dtype = task.grid, task.scales.dtype
        task.scales.check_range(jnp.maximum(-bottom, top), grid.top)
        return grid_of_range(
            bottom, top, grid.bits, symmetric=not grid.has_zero_point, scale_dtype=dtype
        )

    def interval(self, task: Task) -> tuple[jax.Array, jax.Array]:
        """Return the least and the greatest weight that the grid must cover."""
        top = self.reach(task)
        return -top, top

    def reach(self, task: Task) -> jax.Array:
        """Return the greatest magnitude that the grid must cover."""
        return block_largest(task.part.array, task.part.block, task.part.mask)

    def scaled(self, task: Task, learned: Any, rest: Any) -> Scaled:
        """Return the scales and zero points of the blocks, as a quantized node stores them."""
        del learned
        if task.grid.levels is None and task.scales.is_plain:
            return Scaled(task.part.field(rest["scale"]), task.part.field(rest["zero"]))
        return Scaled(task.part.field(task.scales.field(rest)))

    def codes(self, task: Task, learned: Any, rest: Any) -> jax.Array:
        """Return the integer codes; called only if `has_codes` is true."""
        raise NotImplementedError

    def carry(
        self, task: Task, scaled: Scaled, codes: jax.Array, learned: Any, rest: Any
    ) -> jax.Array:
        """Return the straight-through residual, with gradients of clipped weights stopped."""
        del codes, learned, rest
        x, zero = task.part.array, None if scaled.zero is None else materialize(scaled.zero)
        if self.never_clips and task.is_current:
            return x
        return gate(x, task.grid.inside(x, materialize(scaled.scale), zero))

    def node(self, task: Task, scaled: Scaled, codes: jax.Array, carry: jax.Array) -> Node:
        """Return the quantized node of the blocks."""
        return task.grid.node(codes, scaled.scale, scaled.zero, carry, task.part.array.dtype)

    def project(self, leaf: jax.Array, rest: Any) -> jax.Array:
        """Return a parameter after an update, clipped to the range if `projects`."""
        del rest
        return leaf


class _AbsMax(WeightRange):
    def integers(self, task: Task) -> tuple[jax.Array, jax.Array | None]:
        grid, part, dtype = task.grid, task.part, task.scales.dtype
        if jnp.dtype(dtype) == jnp.float16 and not grid.has_zero_point:
            top = self.reach(task)  # computed once, for the check and for the grid
            task.scales.check_range(top, grid.top)
            return grid_of_range(0.0, top, grid.bits, symmetric=True, scale_dtype=dtype)
        task.scales.check_range(lambda: self.reach(task), grid.top)
        return fit_grid(
            part.array, grid.bits, part.block, symmetric=not grid.has_zero_point, mask=part.mask,
            scale_dtype=dtype,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, repr=False)
class _Percentile(WeightRange):
    percent: float = 99.9
    name: ClassVar[str] = "percentile"
    never_clips: ClassVar[bool] = False

    def check(self, settings: Settings, grid: Grid) -> None:
        settings.number("percent", self.percent, 50, 100)

    def interval(self, task: Task) -> tuple[jax.Array, jax.Array]:
        part, symmetric = task.part, not task.grid.has_zero_point
        return percentile_range(
            part.array, part.block, self.percent, symmetric=symmetric, mask=part.mask
        )

    def reach(self, task: Task) -> jax.Array:
        bottom, top = self.interval(task)
        return jnp.maximum(-bottom, top)


@dataclasses.dataclass(frozen=True, repr=False)
class _LeastSquares(WeightRange):
    name: ClassVar[str] = "mse"
    is_exact: ClassVar[bool] = False
    never_clips: ClassVar[bool] = False

    def interval(self, task: Task) -> tuple[jax.Array, jax.Array]:
        grid, part = task.grid, task.part
        return mse_range(
            part.array, grid.bits, part.block, symmetric=not grid.has_zero_point, mask=part.mask,
            scale_dtype=task.scales.dtype,
        )  # fmt: skip

    def reach(self, task: Task) -> jax.Array:
        """Return the best of 80 fractions of the greatest magnitude; on a tie, the widest range."""
        part, grid, scales = task.part, task.grid, task.scales
        x = lax.stop_gradient(part.array).astype(jnp.float32)
        x = x if part.mask is None else jnp.where(part.mask, x, 0.0)
        largest = block_largest(x, part.block)

        def rounded(factor: jax.Array) -> jax.Array:
            scale = materialize(scales.field(scales.fit(factor * largest, grid.top, part.axes)))
            wide = repeat_uneven(scale.astype(jnp.float32), x.shape, part.block)
            return grid.values(grid.nearest(x, wide, None)) * expand(wide, x.shape)

        return largest * least_squares_factor(x, part.block, largest.shape, rounded)


@dataclasses.dataclass(frozen=True, repr=False)
class _LearnedStep(WeightRange):
    name: ClassVar[str] = "learned"
    needs_plain_scales: ClassVar[bool] = True
    is_exact: ClassVar[bool] = False

    def check(self, settings: Settings, grid: Grid) -> None:
        if grid.has_zero_point:
            settings.wrong("range", self, "learns a step, and has none for a zero point; give a "
                                          "symmetric grid.")  # fmt: skip

    def init(self, task: Task) -> tuple[Any, Any]:
        return self._first(task), None

    def refresh(self, task: Task, learned: Any, rest: Any) -> tuple[Any, Any]:
        return _positive(learned, self._first(task), task.scales.dtype), rest

    def scaled(self, task: Task, learned: Any, rest: Any) -> Scaled:
        return Scaled(task.part.field(lax.stop_gradient(learned).astype(task.scales.dtype)))

    def _first(self, task: Task) -> jax.Array:
        mean, above = _mean_magnitude(task.part), task.grid.values_above_zero
        step = 2 * mean / jnp.sqrt(jnp.float32(above))
        if task.grid.top != above:
            step = step * jnp.float32(above / task.grid.top)
        return _positive(step, jnp.float32(1), task.scales.dtype)

    def carry(
        self, task: Task, scaled: Scaled, codes: jax.Array, learned: Any, rest: Any
    ) -> jax.Array:
        """Return the straight-through residual, with the gradients of LSQ for weights and steps."""
        part, grid = task.part, task.grid
        (low, high), above = grid.ends, grid.values_above_zero
        scale = lax.stop_gradient(learned).astype(task.scales.dtype)
        x = lax.stop_gradient(part.array)
        v = x.astype(jnp.float32) * part.expand(1 / scale.astype(jnp.float32))
        inside = (low <= v) & (v <= high)
        values = grid.values(codes)
        slope = jnp.where((low < v) & (v < high), values - v, values)
        slope *= part.expand(lax.rsqrt(jnp.maximum(_count(part), 1.0) * above))
        if grid.top != above:  # the same relative steps as those of a uniform grid
            slope *= jnp.float32((above / grid.top) ** 2)
        slope = slope if part.mask is None else jnp.where(part.mask, slope, 0.0)
        way = gate(part.array, inside).astype(jnp.float32) + slope * part.expand(learned)
        return straight_through(x, way)


def absmax() -> WeightRange:
    """Return the range that spans the extreme values of a block.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.ranges.absmax()
        absmax()
    """
    return _AbsMax()


def percentile(percent: float = 99.9) -> WeightRange:
    """Return the range that excludes the outliers of a block.

    Args:
        percent: the percentage of a block that its range holds, 50 to 100; with a zero point, each
            end excludes equally many.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.ranges.percentile(99)
        percentile(percent=99)

    References:
        McKinstry et al. 2018, Discovering Low-Precision Networks Close to Full-Precision Networks
        for Efficient Embedded Inference, section 3.
    """
    return _Percentile(percent)


def mse() -> WeightRange:
    """Return the range of least squared error among 80 fractions of the extreme values.

    It takes 80 passes over the weights, so raise `every`.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.ranges.mse()
        mse()

    References:
        Banner et al. 2019, Post-training 4-bit quantization of convolution networks, section 3.
    """
    return _LeastSquares()


def learned() -> WeightRange:
    r"""Return the range whose scale the optimizer learns with the weights (LSQ).

    The scale starts at $2\,\mathrm{mean}|w|\,\sqrt{Q_P} / l$ and its gradient is multiplied by
    $Q_P^2 / (l^2 \sqrt{N Q_P})$, for $Q_P$ values above zero, the greatest of which is $l$
    ($l = Q_P$ for integers), and $N$ weights of a block.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.ranges.learned()
        learned()

    References:
        Esser et al. 2020, Learned Step Size Quantization, section 2.
    """
    return _LearnedStep()


def _count(part: Blocked) -> jax.Array:
    """Return the number of weights that share each scale."""
    kept = jnp.ones(part.array.shape, jnp.float32)
    kept = kept if part.mask is None else part.mask.astype(jnp.float32)
    return reduce_blocks("learned range", _sum, kept, part.block)


def _mean_magnitude(part: Blocked) -> jax.Array:
    size = jnp.abs(lax.stop_gradient(part.array)).astype(jnp.float32)
    size = size if part.mask is None else jnp.where(part.mask, size, 0.0)
    # Divide first, because the sum of the largest floats would overflow.
    fractions = size / part.expand(jnp.maximum(_count(part), 1.0))
    return reduce_blocks("learned range", _sum, fractions, part.block)


def _sum(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sum(x, axis=axes)


def _positive(step: jax.Array, other: jax.Array, dtype: Any) -> jax.Array:
    """Replace a step that would not be positive in its stored dtype; keep other steps."""
    limits = jnp.finfo(dtype)
    # Some devices flush numbers below the least normal float32 to zero; bfloat16 has such numbers.
    least = max(float(limits.smallest_subnormal), float(jnp.finfo(jnp.float32).tiny))
    good = (step >= least) & (step <= float(limits.max))
    return jnp.where(good, step, other).astype(jnp.float32)
