"""Soft-thresholded weights, the training form of proximal pruning."""

from __future__ import annotations

import jax

from nnopt_jax.arrays.nodes import Field, Node, materialize, node
from nnopt_jax.ops.proximal_operators import shrink


@node
class SoftThresholded(Node):
    r"""The soft threshold of a node, applied to its values, not to its codes or table.

    $$ \operatorname{sign}(w) \max(|w| - t, 0) $$

    Args:
        values: array or node.
        threshold: `t`, a float32 scalar, at least 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import SoftThresholded
        >>> SoftThresholded(jnp.array([3.0, -0.5]), jnp.float32(1)).materialize()
        Array([2., 0.], dtype=float32)
    """

    values: Field
    threshold: jax.Array

    ELEMENTWISE = ("values",)
    KEEPS_ZERO = True
    SLOTS = {"values": "value"}  # noqa: RUF012 - a constant, as declared in Node

    def materialize(self) -> jax.Array:
        """Apply the soft threshold in float32 and cast once; gradients pass straight through."""
        return shrink(materialize(self.values), self.threshold)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that the threshold is one number."""
        found = super().problems(shape)
        if self.threshold.shape != ():
            found.append(f"has a threshold of shape {self.threshold.shape}")
        return found
