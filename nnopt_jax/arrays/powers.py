"""Powers of two, of which only the exponents are kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.base import Field, Node, node, show
from nnopt_jax.ops.block_formats import power_of_two


@node
class Powers(Node):
    r"""Powers of two in 8 bits each: the scales of microscaling formats (E8M0).

    .. math:: s = 2^{e - 127}

    Args:
        exponents: `e`, uint8, 0 to 254; 0 stands for 0 here, because 2^-127 is no normal float32.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Powers
        >>> Powers(jnp.array([126, 127, 130], jnp.uint8)).materialize()
        Array([0.5, 1. , 8. ], dtype=float32)

    References:
        OCP Microscaling Formats (MX) Specification 1.0, section 5.4.1.
    """

    exponents: Field

    ELEMENTWISE = ("exponents",)
    SHARED = ()

    @property
    def dtype(self) -> jnp.dtype:
        """Always float32."""
        return jnp.dtype(jnp.float32)

    def materialize(self) -> jax.Array:
        """The powers, made of their bits: exact."""
        return power_of_two(show(self.exponents))

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Exponents are bytes."""
        found = super().problems(shape)
        if self.exponents.dtype != jnp.uint8:
            found.append(f"has exponents of {self.exponents.dtype}, not uint8")
        return found
