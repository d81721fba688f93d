"""Ranges of specific methods, such as TWN and TTQ, with their own rules for scales."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax

from nnopt_jax.arrays.lookup_quantized import LookupQuantized
from nnopt_jax.arrays.nodes import Node, materialize
from nnopt_jax.ops.block_formats import (
    block_count,
    block_largest,
    block_mean,
    q4_0_codes,
    q4_0_step,
    q8_0_codes,
    q8_0_step,
    stored_scale,
)
from nnopt_jax.ops.gradient_estimators import scale_gradient
from nnopt_jax.ops.grid import expand
from nnopt_jax.ops.lookup_tables import TERNARY
from nnopt_jax.quantization.granularity import Blocked
from nnopt_jax.quantization.grids import Grid
from nnopt_jax.quantization.weight_ranges import Scaled, Task, WeightRange
from nnopt_jax.settings import Settings

__all__ = ["fixed", "gguf", "mean", "threshold", "two_sided"]

_Q4_0, _Q8_0 = (-8.0, 7.0), (-127.0, 127.0)  # the ends of the grids of GGUF's formats


@dataclasses.dataclass(frozen=True, repr=False)
class _Mean(WeightRange):
    """The mean magnitude as the scale, with the gradient of XNOR-Net."""

    name: ClassVar[str] = "mean"
    is_exact: ClassVar[bool] = False

    def check(self, settings: Settings, grid: Grid) -> None:
        if grid.ends != (-1.0, 1.0) or grid.values_above_zero > 1:
            settings.wrong("range", self, f"makes the mean magnitude the greatest value, and {grid}"
                                          " would clip half of the weights; give 'absmax' or 'mse'."
                           )  # fmt: skip

    def fit(self, task: Task) -> Any:
        part = task.part
        scale = block_mean(part.array, part.block, part.mask)
        count = block_count(part.array.shape, part.block, part.mask)
        return {"scale": task.scales.fit(scale, 1.0, part.axes), "count": count}

    def scaled(self, task: Task, learned: Any, rest: Any) -> Scaled:
        return Scaled(task.part.field(task.scales.field(rest["scale"])))

    def carry(
        self, task: Task, scaled: Scaled, codes: jax.Array, learned: Any, rest: Any
    ) -> jax.Array:
        part = task.part
        value = lax.stop_gradient(part.array).astype(jnp.float32)
        alpha = part.expand(materialize(task.scales.field(rest["scale"])).astype(jnp.float32))
        slope = 1 / part.expand(rest["count"])
        slope += jnp.where(jnp.abs(value) <= 1, alpha, jnp.float32(0))
        return scale_gradient(part.array, slope)


@dataclasses.dataclass(frozen=True, repr=False)
class _Threshold(WeightRange):
    threshold: float = 0.7
    name: ClassVar[str] = "threshold"
    needs_plain_scales: ClassVar[bool] = True
    is_exact: ClassVar[bool] = False
    has_codes: ClassVar[bool] = True

    def check(self, settings: Settings, grid: Grid) -> None:
        settings.number("threshold", self.threshold, 0)
        _check_ternary(settings, self, grid)

    def fit(self, task: Task) -> Any:
        part, mask = task.part, task.part.mask
        limit = jnp.float32(self.threshold) * block_mean(part.array, part.block, mask)
        limit = stored_scale(limit)
        above = jnp.abs(part.array.astype(jnp.float32)) > part.expand(limit)
        above = above if mask is None else above & mask
        scale = task.scales.fit(block_mean(part.array, part.block, above), 1.0, part.axes)
        dead = scale <= 0  # all weights become zero
        return {
            "threshold": jnp.where(dead, jnp.float32(jnp.inf), limit),
            "scale": jnp.where(dead, jnp.ones((), scale.dtype), scale),
        }

    def scaled(self, task: Task, learned: Any, rest: Any) -> Scaled:
        return Scaled(task.part.field(rest["scale"]))

    def codes(self, task: Task, learned: Any, rest: Any) -> jax.Array:
        x = lax.stop_gradient(task.part.array).astype(jnp.float32)
        inside = jnp.abs(x) <= task.part.expand(rest["threshold"])
        return jnp.where(inside, jnp.float32(0), jnp.sign(x))


@dataclasses.dataclass(frozen=True, repr=False)
class _TwoSided(WeightRange):
    threshold: float = 0.05
    name: ClassVar[str] = "two_sided"
    needs_plain_scales: ClassVar[bool] = True
    is_exact: ClassVar[bool] = False
    has_codes: ClassVar[bool] = True

    def check(self, settings: Settings, grid: Grid) -> None:
        settings.number("threshold", self.threshold, 0, 1)
        _check_ternary(settings, self, grid)

    def fit(self, task: Task) -> jax.Array:
        largest = block_largest(task.part.array, task.part.block, task.part.mask)
        return stored_scale(jnp.float32(self.threshold) * largest)

    def init(self, task: Task) -> tuple[Any, Any]:
        part, limit = task.part, self.fit(task)
        x, beyond = lax.stop_gradient(part.array).astype(jnp.float32), part.expand(limit)
        kept = jnp.ones(x.shape, bool) if part.mask is None else part.mask
        learned = {
            "positive": stored_scale(block_mean(x, part.block, kept & (x > beyond))),
            "negative": stored_scale(block_mean(x, part.block, kept & (x < -beyond))),
        }
        return learned, limit

    def scaled(self, task: Task, learned: Any, rest: Any) -> Scaled:
        above, below = (task.part.field(learned[name]) for name in ("positive", "negative"))
        return Scaled(above, None, below)

    def codes(self, task: Task, learned: Any, rest: Any) -> jax.Array:
        x, beyond = lax.stop_gradient(task.part.array), task.part.expand(rest)
        x = x.astype(jnp.float32)
        code = jnp.where(x > beyond, jnp.float32(2), jnp.float32(1))
        return jnp.where(jnp.isnan(x), x, jnp.where(x < -beyond, jnp.float32(0), code))

    def carry(
        self, task: Task, scaled: Scaled, codes: jax.Array, learned: Any, rest: Any
    ) -> jax.Array:
        """Return the straight-through residual, with gradients scaled as in TTQ."""
        positive, negative = (
            task.part.expand(lax.stop_gradient(learned[name])) for name in ("positive", "negative")
        )
        slope = jnp.where(codes == 0, negative, jnp.float32(1))
        return scale_gradient(task.part.array, jnp.where(codes == 2, positive, slope))

    def node(self, task: Task, scaled: Scaled, codes: jax.Array, carry: jax.Array) -> Node:
        dtype = str(task.part.array.dtype)
        return LookupQuantized(codes, scaled.scale, scaled.below, carry, TERNARY, dtype)


@dataclasses.dataclass(frozen=True, repr=False)
class _Gguf(WeightRange):
    name: ClassVar[str] = "gguf"
    needs_plain_scales: ClassVar[bool] = True
    has_codes: ClassVar[bool] = True

    def check(self, settings: Settings, grid: Grid) -> None:
        if grid.range != self.name or grid.ends not in (_Q4_0, _Q8_0):
            settings.wrong("range", self, f"belongs to the formats q4_0 and q8_0, but the grid is "
                                          f"{grid}; give 'absmax'.")  # fmt: skip

    def fit(self, task: Task) -> jax.Array:
        step = q4_0_step if task.grid.ends == _Q4_0 else q8_0_step
        return step(task.part.array, task.part.block, task.part.mask)

    def scaled(self, task: Task, learned: Any, rest: Any) -> Scaled:
        return Scaled(stored_scale(rest, task.scales.dtype))

    def codes(self, task: Task, learned: Any, rest: Any) -> jax.Array:
        if task.grid.ends == _Q4_0:  # steps have a sign here, and a product of 0 must not be -0
            return q4_0_codes(task.part.array, rest) + 8
        scale = stored_scale(rest, task.scales.dtype)
        return q8_0_codes(task.part.array, jnp.where(scale == 0, jnp.float32(0), rest))


@dataclasses.dataclass(frozen=True, repr=False)
class _Fixed(WeightRange):
    scale: float | Literal["glorot"] = 1.0
    project_weights: bool = False
    name: ClassVar[str] = "fixed"
    needs_plain_scales: ClassVar[bool] = True

    @property
    def projects(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether updates clip the weights to the range."""
        return self.project_weights

    @property
    def never_clips(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether gradients pass all weights, because updates clip the weights themselves.

        BinaryConnect has no other gate than its projection (section 2.4 of the paper).
        """
        return self.project_weights

    def check(self, settings: Settings, grid: Grid) -> None:
        if isinstance(self.scale, str):
            settings.choice("scale", self.scale, ("glorot",))
        else:
            settings.number("scale", self.scale, 0, above=True)
        if grid.has_zero_point:
            settings.wrong("range", self, "has no zero point; give a symmetric grid.")

    def needs_axes(self, ndim: int) -> bool:
        return isinstance(self.scale, str) and ndim > 1

    def fit(self, task: Task) -> Any:
        part = task.part
        return {"scale": jnp.full((1,) * part.array.ndim, self._height(part))}

    def refresh(self, task: Task, learned: Any, rest: Any) -> tuple[Any, Any]:
        return learned, rest

    def scaled(self, task: Task, learned: Any, rest: Any) -> Scaled:
        return Scaled(rest["scale"])

    def project(self, leaf: jax.Array, rest: Any) -> jax.Array:
        height = expand(rest["scale"], leaf.shape)
        return jnp.clip(leaf.astype(jnp.float32), -height, height).astype(leaf.dtype)

    def _height(self, part: Blocked) -> jax.Array:
        if not isinstance(self.scale, str):
            return jnp.float32(self.scale)
        shape, axes = part.array.shape, part.axes
        roles = ((), tuple(range(len(shape)))) if axes is None else (axes.contracted, axes.output)
        inputs, outputs = (math.prod(shape[axis] for axis in role) for role in roles)
        if len(roles[0]) > 2:  # as in the authors' code
            outputs *= math.prod(shape[axis] for axis in roles[0][:-1])
        return jnp.float32(math.sqrt(1.5 / max(inputs + outputs, 1)))


def mean() -> WeightRange:
    r"""Return the range of the mean magnitude, with the gradient of XNOR-Net.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.ranges.mean()
        mean()

    References:
        Rastegari et al. 2016, XNOR-Net, section 3.1.
    """
    return _Mean()


def threshold(threshold: float = 0.7) -> WeightRange:
    r"""Return the range whose scale is the mean of $|w|$ above $t\,\mathrm{mean}|w|$.

    Args:
        threshold: $t$, 0 or more.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.ranges.threshold()
        threshold(threshold=0.7)

    References:
        Li et al. 2016, Ternary Weight Networks, section 2.2.
    """
    return _Threshold(threshold)


def two_sided(threshold: float = 0.05) -> WeightRange:
    r"""Return the range of TTQ, with learned scales for weights above and below $\pm t \max|w|$.

    Args:
        threshold: $t$, from 0 to 1.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.ranges.two_sided()
        two_sided(threshold=0.05)

    References:
        Zhu et al. 2017, Trained Ternary Quantization, sections 3.1 and 3.2.
    """
    return _TwoSided(threshold)


def gguf() -> WeightRange:
    """Return the range of GGUF's formats Q4_0 and Q8_0, with bit-exact scales.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.ranges.gguf()
        gguf()

    References:
        The GGUF format of llama.cpp, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
    """
    return _Gguf()


def fixed(scale: float | Literal["glorot"] = 1.0, project_weights: bool = False) -> WeightRange:
    """Return the range of one constant scale.

    Args:
        scale: a positive number, or `"glorot"`: `sqrt(1.5 / (fan in + fan out))`.
        project_weights: whether updates clip the weights to `[-scale, scale]`; gradients then pass
            clipped weights, too, and are stopped otherwise.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.ranges.fixed(0.5)
        fixed(scale=0.5, project_weights=False)
    """
    return _Fixed(scale, project_weights)


def _check_ternary(settings: Settings, range: WeightRange, grid: Grid) -> None:
    if grid.levels is not None or grid.ends != (-1.0, 1.0):
        settings.wrong("range", range, f"gives weights one of three values, but the grid is "
                                       f"{grid}; give 'absmax' or 'mse'.")  # fmt: skip
