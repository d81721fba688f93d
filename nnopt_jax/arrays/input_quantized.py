"""A weight that says how what it is multiplied with is rounded."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.base import Field, Node, is_node, node, show, static, store_field
from nnopt_jax.arrays.masked import without_carry


@node
class InputQuantized(Node):
    r"""A weight whose products round their other operand first.

    .. math:: x \cdot W \;\to\; \hat x \cdot W, \qquad
        \hat x = s \, \mathrm{clip}(\mathrm{round}(x / s), -hi, hi)

    As an array it is the weight: rounding is up to whoever multiplies, `nnopt_jax.on_packed`.

    Args:
        values: array or node, the weight.
        scale: `s`, float32, of the rank of the weight and of one entry along each axis that is no
            stack of layers or experts; None: each row has that of its own greatest magnitude.
        shown: the dense weight that products take their gradients at, in training; not stored.
        input_bits: of the codes of the other operand, 2 to 8.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import InputQuantized
        >>> node = InputQuantized(jnp.array([[1.0], [2.0]]), jnp.array([[0.5]]))
        >>> node, node.materialize().shape
        (InputQuantized(values float32[2,1], scale float32[1,1], 48 bits/weight), (2, 1))
    """

    values: Field
    scale: Field = None
    shown: Field = None
    input_bits: int = static(default=8)

    ELEMENTWISE = ("values",)
    KEEPS_ZERO = True
    SLOTS = {"values": "inherit"}  # noqa: RUF012 - a constant, as declared in Node

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.values.shape

    @property
    def dtype(self) -> Any:
        """Dtype of the weight."""
        return self.values.dtype

    def materialize(self) -> jax.Array:
        """The weight."""
        return show(self.values if self.shown is None else self.shown)

    def store(self) -> InputQuantized:
        """The weight in storage form; what only gradients need is dropped."""
        return self.replace(values=store_field(self.values), shown=None)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """The scale has the weight's rank, and each of its sizes is that of the weight or 1."""
        found = super().problems(shape)
        sizes = () if self.scale is None else self.scale.shape
        fits = len(sizes) == len(shape) and all(
            one in (1, size) for one, size in zip(sizes, shape, strict=True)
        )
        if self.scale is not None and not fits:
            found.append(f"has scale {sizes}, which does not fit {shape}")
        return found

    def specs(self, spec: PartitionSpec, mesh: jax.sharding.Mesh | None = None) -> InputQuantized:
        """Scales follow the weight along the axes where they have entries."""
        return self.specs_alike(spec, mesh)


def inputs_above(field: Field) -> Field:
    """Lets the rounding of inputs below a mask stand above it, where products look for it.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import InputQuantized, Masked
        >>> from nnopt_jax.arrays.input_quantized import inputs_above
        >>> below = Masked(InputQuantized(jnp.ones((2, 2))), jnp.eye(2, dtype=bool))
        >>> inputs_above(below).outline()
        'InputQuantized(values Masked(values float32[2,2], mask bool[2,2]))'
    """
    if not is_node(field) or isinstance(field, InputQuantized) or "values" not in field.names():
        return field
    below = inputs_above(field.values)
    if not isinstance(below, InputQuantized):
        return field
    return below.replace(values=field.replace(values=below.values))


def rounds_inputs(field: Field) -> bool:
    """Whether there is a weight in it that says how its inputs are rounded.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import InputQuantized, Sum
        >>> from nnopt_jax.arrays.input_quantized import rounds_inputs
        >>> rounds_inputs(Sum(InputQuantized(jnp.ones(2)), jnp.ones(2))), rounds_inputs(jnp.ones(2))
        (True, False)
    """
    if not is_node(field) or isinstance(field, InputQuantized):
        return is_node(field)
    return any(rounds_inputs(inner) for _, inner in field.fields())


def for_products(field: Field) -> InputQuantized | None:
    """What products in training need of a weight: its codes, which get no gradient.

    Give it the dense weight that gradients are taken at as `shown`. None where the rounding is of
    a part of the weight only, as of the base below adapters.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import InputQuantized, Quantized
        >>> from nnopt_jax.arrays.input_quantized import for_products
        >>> grid = Quantized(jnp.ones((2, 2)), jnp.ones((1, 1)), carry=jnp.ones((2, 2)))
        >>> print(for_products(InputQuantized(grid)).values.carry)
        None
    """
    above = inputs_above(field)
    if not isinstance(above, InputQuantized):
        return None
    return jax.tree.map(jax.lax.stop_gradient, without_carry(above))
