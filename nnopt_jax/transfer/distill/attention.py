"""Distillation of where a teacher looks."""

from __future__ import annotations

import math
from typing import Literal

import jax.numpy as jnp

from nnopt_jax.errors import ShapeError
from nnopt_jax.ops.block_formats import exponent
from nnopt_jax.settings import Settings
from nnopt_jax.transfer.distill.pairs import as_pair
from nnopt_jax.typing import Array, ArrayLike

_NAME = "transfer.attention_loss"


def attention_map(features: ArrayLike, power: float = 2.0) -> Array:
    r"""Where features are strong: one number for each place, the whole of norm 1.

    $$ Q = \frac{\mathrm{vec}(F)}{\lVert \mathrm{vec}(F) \rVert_2}, \qquad
       F = \frac{1}{c} \sum_c |A_c|^p $$

    Args:
        features: `(batch, ..., channels)`.
        power: `p`, above 0. Features of zero get no gradient, whatever it is.

    Returns:
        `(batch, places)` float32; zeros where there are no features at all.

    Raises:
        ValueRangeError: the power is out of range.
        ShapeError: there are fewer than three axes.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> features = jnp.array([[[1.0, 1.0], [0.0, 0.0]]])  # strong in the first of two places
        >>> nnopt.transfer.attention_map(features)
        Array([[1., 0.]], dtype=float32)

    References:
        Zagoruyko and Komodakis 2017, Paying More Attention to Attention, section 3.1.
    """
    settings = Settings("transfer.attention_map")
    settings.number("power", power, 0, above=True)
    settings.done()
    features = jnp.asarray(features).astype(jnp.float32)
    if features.ndim < 3:
        raise ShapeError(
            f"transfer.attention_map: features of shape {features.shape} have no places; give "
            "(batch, ..., channels)."
        )
    # The map does not change with the scale of the features, whose powers might leave float32.
    scaled = jnp.ldexp(features, -exponent(features, tuple(range(1, features.ndim))))
    size = jnp.square(scaled) if power == 2 else _power(scaled, power)
    places = size.mean(-1).reshape(features.shape[0], math.prod(features.shape[1:-1]))
    square = jnp.square(places).sum(1, keepdims=True)
    # Guarded inside the root as well, where the slope at zero would be infinite.
    some = square > 0
    return jnp.where(some, places / jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)


def _power(x: Array, power: float) -> Array:
    """`|x|^p`, with a slope of 0 where x is 0, also where powers below 1 have an infinite one."""
    some = x != 0
    return jnp.where(some, jnp.abs(jnp.where(some, x, 1.0)) ** power, 0.0)


def attention_loss(
    student: ArrayLike,
    teacher: ArrayLike,
    power: float = 2.0,
    *,
    distance: Literal["square", "norm"] = "square",
) -> Array:
    r"""How far a student's attention map is from its teacher's.

    $$ L = \mathrm{mean}\, (Q^s - Q^t)^2 \qquad \text{or} \qquad
       L = \frac{1}{n} \sum_i \lVert Q^s_i - Q^t_i \rVert_2 $$

    The teacher gets no gradient. Numbers of channels may differ.

    Args:
        student: features `(batch, ..., channels)`.
        teacher: features with as many places.
        power: `p` of `attention_map`.
        distance: `"square"`, as in the authors' code; `"norm"`, as in the paper.

    Returns:
        A float32 scalar.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: there are not as many places.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> student = jnp.array([[[1.0], [0.0]]])
        >>> teacher = jnp.array([[[0.0, 0.0], [1.0, 1.0]]])
        >>> nnopt.transfer.attention_loss(student, teacher)
        Array(1., dtype=float32)

    References:
        Zagoruyko and Komodakis 2017, Paying More Attention to Attention, section 3.1 (2).
    """
    settings = Settings(_NAME)
    settings.choice("distance", distance, ("square", "norm"))
    settings.done()
    student, teacher = as_pair(student, teacher)
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ShapeError(
            f"{_NAME}: features of shapes {student.shape} and {teacher.shape} have other places; "
            "pool the larger ones."
        )
    apart = jnp.square(attention_map(student, power) - attention_map(teacher, power))
    if distance == "square":
        return apart.mean()
    square = apart.sum(1)
    some = square > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1.0)), 0.0).mean()
