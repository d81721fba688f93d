"""What all supports are: storage forms of a bool mask."""

from __future__ import annotations

from typing import Self

import jax.numpy as jnp

from nnopt_jax.arrays.base import Node


class Support(Node):
    """Base of the nodes that stand for a mask; a plain bit for each element is `Bits` of width 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Gaps
        >>> support = Gaps.of(jnp.array([False, True]), width=2)
        >>> support.dtype, support.most
        (dtype('bool'), 1)
    """

    @property
    def dtype(self) -> jnp.dtype:
        """Always bool."""
        return jnp.dtype(jnp.bool_)

    @property
    def most(self) -> int:
        """The most elements that can be kept, told from shapes alone."""
        return self.size

    @property
    def least(self) -> int:
        """The least number of elements that are kept, told from shapes alone."""
        return 0

    def store(self) -> Self:
        """Already in storage form."""
        return self
