"""Compact forms of scales: powers of two, and groups with a shorter last group."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.hooks import CannotStayPacked, Moves, move
from nnopt_jax.arrays.nodes import Field, Node, field_specs, materialize, node, static
from nnopt_jax.ops.block_formats import power_of_two
from nnopt_jax.ops.blockwise import repeat_uneven
from nnopt_jax.typing import Shape


@node
class Powers(Node):
    r"""Powers of two, in 8 bits each: the scales of microscaling formats (E8M0).

    $$ s = 2^{e - 127} $$

    Args:
        exponents: `e`, uint8, 0 to 254; here, 0 stands for a scale of 0, because 2^-127 is not a
            normal float32.

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
        """The dtype of the powers, float32."""
        return jnp.dtype(jnp.float32)

    def materialize(self) -> jax.Array:
        """Return the exact powers, made by setting the exponent bits of floats."""
        return power_of_two(materialize(self.exponents))

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that the exponents are bytes."""
        found = super().problems(shape)
        if self.exponents.dtype != jnp.uint8:
            found.append(f"has exponents of {self.exponents.dtype}, not uint8")
        return found


@node
class UnevenGroups(Node):
    r"""The scales of groups that do not divide an axis; materialized, one scale for each entry.

    $$ s_i = v_{\lfloor i / g \rfloor}, \qquad i < n $$

    Groups that divide an axis need no node: their scales are plain arrays with fewer entries than
    the weight.

    Args:
        values: `v`, array or node, of `ceil(n / g)` entries along the axis.
        axis: the axis, counted from the end, -1 or less.
        group: `g`, the number of entries of a group.
        length: `n`, the number of entries along the axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import UnevenGroups
        >>> UnevenGroups(jnp.array([0.5, 2.0]), group=3, length=4).materialize()
        Array([0.5, 0.5, 0.5, 2. ], dtype=float32)
    """

    values: Field
    axis: int = static(default=-1)
    group: int = static(default=1)
    length: int = static(default=0)

    @classmethod
    def of(cls, values: Field, shape: Sequence[int], block: Sequence[int]) -> Field:
        """Wrap values whose last block is shorter; return the values if all blocks are equal.

        Args:
            values: array or node, one entry for each block.
            shape: of the weight.
            block: the size of a block along each axis of the weight.
        """
        for axis, (size, part) in enumerate(zip(shape, block, strict=True)):
            if part and size % part:
                values = cls(values, axis - len(shape), part, size)
        return values

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array of all scales."""
        sizes = list(self.values.shape)
        sizes[self.axis] = self.length
        return tuple(sizes)

    def materialize(self) -> jax.Array:
        """Repeat each value for the entries of its group."""
        values = materialize(self.values)
        block = [1] * values.ndim
        block[self.axis] = self.group
        return repeat_uneven(values, self.shape, block)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that there are as many values as the axis has groups."""
        del shape
        found = self.inner_problems()
        sizes = self.values.shape
        if not -len(sizes) <= self.axis < 0 or self.group < 1:
            return [*found, f"of shape {sizes} has groups of {self.group} along axis {self.axis}"]
        if -(-self.length // self.group) != sizes[self.axis]:
            groups = f"groups of {self.group} along an axis of {self.length}"
            found.append(f"has {sizes[self.axis]} values for {groups}")
        return found

    def specs(self, spec: PartitionSpec, mesh: jax.sharding.Mesh | None = None) -> UnevenGroups:
        """Replicate the values along the axis of the groups, since devices may split a group."""
        at = len(self.values.shape) + self.axis
        entries = [None if axis == at else entry for axis, entry in enumerate(spec)]
        return self.replace(values=field_specs(self.values, PartitionSpec(*entries), mesh))

    def move(self, movement: Moves, shape: Shape) -> UnevenGroups:
        """Move the values, if their axis stays whole or is permuted."""
        axis = self.axis
        if movement.axes:
            axis = movement.axes.index(len(shape) + axis) - len(shape)
        elif movement.kept < -axis:
            raise CannotStayPacked("one of its fields cannot be moved")
        sizes = list(shape)
        sizes[self.axis] = self.values.shape[self.axis]
        return self.replace(values=move(self.values, movement, tuple(sizes)), axis=axis)
