"""A node that somebody else wrote, with hooks: the library does not know it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnopt_jax.arrays import Node, Reshaped, materialize, node
from nnopt_jax.arrays.hooks import move


@node
class Signed(Node):
    """A weight of one sign bit for each entry and one magnitude for all."""

    positive: jax.Array | Node
    magnitude: jax.Array

    @property
    def dtype(self):
        return self.magnitude.dtype

    def _signs(self):
        return jnp.where(materialize(self.positive), 1.0, -1.0).astype(self.dtype)

    def materialize(self):
        return self.magnitude * self._signs()

    def dot(self, x, how):
        return self.magnitude * how(x, self._signs())

    def move(self, movement, shape):
        return self.replace(positive=move(self.positive, movement, shape))

    def prepack(self, backend):
        return self.replace(positive=Reshaped.of(self.positive.T, (1, 0)))
