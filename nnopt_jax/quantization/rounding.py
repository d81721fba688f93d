"""Rounding: the choice between the two neighboring values of a weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from nnopt_jax.ops.grid import expand
from nnopt_jax.quantization.grids import Grid
from nnopt_jax.transform.leaves import Start, Update

__all__ = ["ROUNDINGS", "Rounding", "learned", "nearest", "stochastic"]


@dataclasses.dataclass(frozen=True)
class Rounding:
    """Rounding to the nearest value, and the base of all roundings.

    The state of a rounding is a pair of dictionaries, of arrays that the optimizer learns and of
    other arrays; both are empty by default.
    """

    name: ClassVar[str] = "nearest"
    keys: ClassVar[tuple[str, ...]] = ()
    """The names of the arrays of its state, which is stored with that of the range."""

    def __repr__(self) -> str:
        """Return the name in the form of a call."""
        return f"{self.name}()"

    @property
    def is_nearest(self) -> bool:
        """Whether each weight becomes the nearest value."""
        return type(self) is Rounding

    def init(self, x: jax.Array, start: Start) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the initial state."""
        del x, start
        return {}, {}

    def refresh(
        self, learned: dict[str, Any], rest: dict[str, Any], now: Update
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the state after an update."""
        del now
        return learned, rest

    def codes(
        self,
        grid: Grid,
        x: jax.Array,
        grids: tuple[jax.Array, jax.Array | None],
        state: tuple[Any, Any],
        train: bool,
    ) -> jax.Array:
        """Return the code of each weight, held in float32.

        Args:
            grid: the grid.
            x: the weights.
            grids: the scales and zero points of the blocks.
            state: the learned and the other arrays.
            train: whether the codes are used for training rather than for inference and storage.
        """
        del state, train
        return grid.nearest(x, *grids)

    def carry(
        self, grid: Grid, carry: jax.Array, scale: jax.Array, codes: jax.Array, learned: Any
    ) -> jax.Array:
        """Return the straight-through residual, which may pass gradients to learned arrays."""
        del grid, scale, codes, learned
        return carry


class _Stochastic(Rounding):
    name: ClassVar[str] = "stochastic"
    keys: ClassVar[tuple[str, ...]] = ("key", "count")

    def init(self, x: jax.Array, start: Start) -> tuple[dict[str, Any], dict[str, Any]]:
        del x
        key = start.drawing_key("stochastic rounding draws")
        return {}, {"key": key, "count": jnp.int32(0)}

    def refresh(
        self, learned: dict[str, Any], rest: dict[str, Any], now: Update
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        return learned, rest | {"count": now.count}

    def codes(
        self,
        grid: Grid,
        x: jax.Array,
        grids: tuple[jax.Array, jax.Array | None],
        state: tuple[Any, Any],
        train: bool,
    ) -> jax.Array:
        if not train:
            return grid.nearest(x, *grids)
        below, fraction = grid.between(x, *grids)
        key = jax.random.fold_in(state[1]["key"], state[1]["count"])
        return below + (jax.random.uniform(key, x.shape) < fraction).astype(jnp.float32)


class _LearnedOffset(Rounding):
    name: ClassVar[str] = "learned"
    keys: ClassVar[tuple[str, ...]] = ("offset",)

    def init(self, x: jax.Array, start: Start) -> tuple[dict[str, Any], dict[str, Any]]:
        del start
        return {"offset": jnp.zeros(x.shape, jnp.float32)}, {}

    def refresh(
        self, learned: dict[str, Any], rest: dict[str, Any], now: Update
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"offset": jnp.clip(learned["offset"], -0.5, 0.5)}, rest

    def codes(
        self,
        grid: Grid,
        x: jax.Array,
        grids: tuple[jax.Array, jax.Array | None],
        state: tuple[Any, Any],
        train: bool,
    ) -> jax.Array:
        below, fraction = grid.between(x, *grids)
        offset = jnp.clip(lax.stop_gradient(state[0]["offset"]), -0.5, 0.5)
        # Halves are rounded up, so that an offset of zero rounds to the nearest value.
        return jnp.clip(below + jnp.floor(fraction + offset + 0.5), grid.low, grid.high)

    def carry(
        self, grid: Grid, carry: jax.Array, scale: jax.Array, codes: jax.Array, learned: Any
    ) -> jax.Array:
        offset, step = learned["offset"], expand(lax.stop_gradient(scale), carry.shape)
        moved = (offset - lax.stop_gradient(offset)) * grid.gap(codes) * step.astype(jnp.float32)
        return carry + moved.astype(carry.dtype)


def nearest() -> Rounding:
    """Return rounding to the nearest value, with ties to even codes.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.rounding.nearest()
        nearest()
    """
    return Rounding()


def stochastic() -> Rounding:
    r"""Return rounding up or down at random, unbiased between the two neighbors.

    Training draws new random numbers at each update, so `tx.init` needs `key`; the nearest value is
    stored.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.rounding.stochastic()
        stochastic()

    References:
        Gupta et al. 2015, Deep Learning with Limited Numerical Precision, section 3.
    """
    return _Stochastic()


def learned() -> Rounding:
    r"""Return rounding of $w / s + v$ with a learned offset $-0.5 \le v \le 0.5$ for each weight.

    The gradient passes straight through the rounding to $v$. Offsets start at zero.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.rounding.learned()
        learned()

    References:
        Cheng et al. 2024, Optimize Weight Rounding via Signed Gradient Descent for the
        Quantization of LLMs, section 3.
    """
    return _LearnedOffset()


ROUNDINGS: Mapping[str, Callable[[], Rounding]] = MappingProxyType(
    {"nearest": nearest, "stochastic": stochastic, "learned": learned}
)
"""The roundings that a string can name."""
