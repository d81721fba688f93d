"""Base class of nodes that pack integers in bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.base import Field, Node, fit_spec
from nnopt_jax.arrays.hooks import Moves, move
from nnopt_jax.typing import Array, Shape


class Words(Node):
    """Base of nodes that pack integers in uint8 words, for each row or as one flat sequence.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Bits
        >>> Bits.of(jnp.zeros((2, 8), int), width=4).layout, Bits.of(jnp.zeros(3, int), 4).layout
        ('rows', 'flat')
    """

    words: jax.Array
    low: int
    layout: str

    @property
    def high(self) -> int:
        """The greatest integer that can be packed."""
        raise NotImplementedError

    def _unpack(self, count: int) -> Array:
        """Unpack a number of integers from each sequence of words, without adding `low`."""
        raise NotImplementedError

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the integers: int32, which holds every code."""
        return jnp.dtype(jnp.int32)

    def materialize(self) -> jax.Array:
        """Unpack the integers to int32."""
        count = self.shape[-1] if self.layout == "rows" else math.prod(self.shape)
        codes = self._unpack(count).astype(jnp.int32)
        return codes.reshape(self.shape) + self.low

    @property
    def is_streamed(self) -> bool:
        """Whether sums need no array: always, since each integer depends on one or two words."""
        return True

    def store(self) -> Self:
        """Return the node itself, which is in storage form already."""
        return self

    def map_elementwise(self, function: Callable[[jax.Array], jax.Array]) -> Field:
        """Apply a function to the unpacked integers; the owner of the node packs them again."""
        return function(self.materialize())

    def specs(self, spec: PartitionSpec, mesh: jax.sharding.Mesh | None = None) -> Self:
        """Return specs: rows are sharded like the logical array, flat words are replicated."""
        words = fit_spec(spec, self.words.shape, mesh) if self.layout == "rows" else PartitionSpec()
        return self.replace(words=words)

    def move(self, movement: Moves, shape: Shape) -> Field:
        """Move the words if the last axis stays, or else unpacked codes of one or two bytes."""
        if self.layout == "rows" and movement.kept >= 1 and not movement.fills:
            words = move(self.words, movement, (*shape[:-1], self.words.shape[-1]))
            return self.replace(words=words, shape=(*words.shape[:-1], shape[-1]))
        kinds = (jnp.iinfo(kind) for kind in (jnp.int8, jnp.uint8, jnp.int16, jnp.uint16))
        narrow = next(x.dtype for x in kinds if x.min <= self.low and self.high <= x.max)
        return move(self.materialize().astype(narrow), movement, shape)
