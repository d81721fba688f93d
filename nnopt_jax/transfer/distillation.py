"""Distillation losses: predictions, hidden features and attention maps of a teacher."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from nnopt_jax.errors import ShapeError
from nnopt_jax.ops.block_formats import exponent
from nnopt_jax.settings import Settings
from nnopt_jax.transform.validation import check_key
from nnopt_jax.typing import Array, ArrayLike, Key


def distillation_loss(
    student: ArrayLike, teacher: ArrayLike, temperature: ArrayLike = 4.0
) -> Array:
    r"""Return the KL divergence between softened predictions of teacher and student.

    $$ L = T^2 \, \frac{1}{n} \sum_i \mathrm{KL}\big(
       \mathrm{softmax}(z^t_i / T) \,\Vert\, \mathrm{softmax}(z^s_i / T) \big) $$

    The factor makes the size of gradients independent of the temperature. Add this loss to the loss
    of the labels: `alpha * distillation_loss(...) + (1 - alpha) * cross_entropy(...)`. The teacher
    gets no gradient.

    Args:
        student: logits `(..., classes)`.
        teacher: logits of the same shape.
        temperature: `T`, above 0; 1 does not change the predictions. An array of one number may be
            traced, such as that of a schedule under `jax.jit`.

    Returns:
        A float32 scalar, the mean over all but the last axis.

    Raises:
        ValueRangeError: the temperature is out of range.
        ShapeError: the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> teacher = jnp.log(jnp.array([[0.5, 0.5]]))
        >>> student = jnp.log(jnp.array([[0.75, 0.25]]))
        >>> nnopt.transfer.distillation_loss(student, teacher, temperature=1.0).round(4)
        Array(0.1438, dtype=float32)

    References:
        Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network, section 2.
    """
    who = "transfer.distillation_loss"
    settings = Settings(who)
    settings.number("temperature", temperature, 0, above=True, array=True)
    settings.done()
    student, teacher = _same_shape(who, student, teacher)
    temperature = jnp.asarray(temperature, jnp.float32)
    return temperature**2 * _divergence(student / temperature, teacher / temperature).mean()


def _divergence(student: Array, teacher: Array) -> Array:
    r"""Return the KL divergence of two softmaxes over the last axis, accurate even if it is small.

    $$ \sum_c p_c (e^{d_c} - 1 - d_c), \qquad d = \log q - \log p $$

    If `p` and `q` are close, the terms of $\sum p (-d)$ are as large as `d`, but their sum is as
    small as its square. No term of the sum above is negative, so there is no cancellation.
    """
    mine, theirs = (jnp.exp(jax.nn.log_softmax(z)) for z in (student, teacher))
    total, whole = (jax.nn.logsumexp(z, -1, keepdims=True) for z in (student, teacher))
    # A class that the teacher excludes adds only q, because 0 log 0 = 0.
    some = theirs > 0
    apart = jnp.where(some, (student - teacher) - (total - whole), 0.0)
    # For larger differences the direct form below does not cancel, and exp(d) might overflow.
    near = some & (apart < 1)
    close = theirs * _excess(jnp.where(near, apart, 0.0))
    return jnp.where(near, close, mine - theirs - theirs * apart).sum(-1)


def _excess(d: Array) -> Array:
    """Return `exp(d) - 1 - d`, for small `d` by its series, which avoids cancellation."""
    # At 0.1, the truncation error of the series (relative to the result, d^4 / 360) is about
    # the precision of float32.
    small = jnp.abs(d) < 0.1
    x = jnp.where(small, d, 0.0)
    series = x * x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5)))
    return jnp.where(small, series, jnp.expm1(d) - d)


def hint_loss(student: ArrayLike, teacher: ArrayLike, regressor: ArrayLike | None = None) -> Array:
    r"""Return the mean squared error between teacher features and mapped student features.

    $$ L = \mathrm{mean}\, ( h^t - h^s R )^2 $$

    The loss of the paper is half the sum over features instead of the mean. The teacher gets no
    gradient.

    Args:
        student: features `(..., s)`, channels last.
        teacher: features `(..., t)`, with the same other axes.
        regressor: `R`, `(s, t)`, which is trained with the student (`hint_regressor` initializes
            it); for images, it is a 1x1 convolution. None if `s = t` and features should be equal.

    Returns:
        A float32 scalar.

    Raises:
        ShapeError: the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> student, teacher = jnp.array([[1.0, 2.0]]), jnp.array([[5.0]])
        >>> nnopt.transfer.hint_loss(student, teacher, jnp.array([[1.0], [1.0]]))
        Array(4., dtype=float32)

    References:
        Romero et al. 2015, FitNets: Hints for Thin Deep Nets, section 2.2 (3).
    """
    who = "transfer.hint_loss"
    if regressor is not None:
        student, teacher = _pair(student, teacher)
        matrix = jnp.asarray(regressor).astype(jnp.float32)
        wanted = (student.shape[-1:], teacher.shape[-1:])
        if matrix.ndim != 2 or wanted != (matrix.shape[:1], matrix.shape[1:]):
            raise ShapeError(
                f"{who}: a regressor of shape {matrix.shape} does not lead from features "
                f"{student.shape} to {teacher.shape}; hint_regressor() makes one."
            )
        student = student @ matrix
    student, teacher = _same_shape(who, student, teacher)
    return jnp.square(teacher - student).mean()


def hint_regressor(key: Key, student: int, teacher: int) -> Array:
    r"""Draw the initial regressor of `hint_loss`.

    $$ R_{ij} \sim \mathcal{N}(0, 1/s) $$

    Args:
        key: the key of the random numbers.
        student: `s`, the number of features of the student.
        teacher: `t`, the number of features of the teacher.

    Returns:
        `(s, t)` float32.

    Raises:
        ValueRangeError: a number of features is less than 1, or the key is not a key.

    Example:
        >>> import jax
        >>> import nnopt_jax as nnopt
        >>> nnopt.transfer.hint_regressor(jax.random.key(0), 4, 16).shape
        (4, 16)
    """
    settings = Settings("transfer.hint_regressor")
    settings.integer("student", student, 1)
    settings.integer("teacher", teacher, 1)
    settings.done()
    check_key("transfer.hint_regressor", key)
    return jax.random.normal(key, (student, teacher), jnp.float32) * jnp.float32(student**-0.5)


def attention_map(features: ArrayLike, power: float = 2.0) -> Array:
    r"""Return the attention map of features: their strength at each position, of norm 1.

    $$ Q = \frac{\mathrm{vec}(F)}{\lVert \mathrm{vec}(F) \rVert_2}, \qquad
       F = \frac{1}{c} \sum_c |A_c|^p $$

    Args:
        features: `(batch, ..., channels)`.
        power: `p`, above 0. Features of zero get no gradient for any power.

    Returns:
        `(batch, places)` float32; zeros if all features are zero.

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
    # The map does not depend on the scale of the features, whose powers might overflow float32.
    scaled = jnp.ldexp(features, -exponent(features, tuple(range(1, features.ndim))))
    size = jnp.square(scaled) if power == 2 else _power(scaled, power)
    places = size.mean(-1).reshape(features.shape[0], math.prod(features.shape[1:-1]))
    square = jnp.square(places).sum(1, keepdims=True)
    # Guarded inside the root as well, whose derivative at zero would be infinite.
    some = square > 0
    return jnp.where(some, places / jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)


def _power(x: Array, power: float) -> Array:
    """Return `|x|^p` with a gradient of zero at zero, where it is infinite if `p < 1`."""
    some = x != 0
    return jnp.where(some, jnp.abs(jnp.where(some, x, 1.0)) ** power, 0.0)


def attention_loss(
    student: ArrayLike,
    teacher: ArrayLike,
    power: float = 2.0,
    *,
    distance: Literal["square", "norm"] = "square",
) -> Array:
    r"""Return the distance between the attention maps of student and teacher.

    $$ L = \mathrm{mean}\, (Q^s - Q^t)^2 \qquad \text{or} \qquad
       L = \frac{1}{n} \sum_i \lVert Q^s_i - Q^t_i \rVert_2 $$

    The teacher gets no gradient. The numbers of channels may differ.

    Args:
        student: features `(batch, ..., channels)`.
        teacher: features with the same number of positions.
        power: `p` of `attention_map`.
        distance: `"square"`, as in the authors' code; `"norm"`, as in the paper.

    Returns:
        A float32 scalar.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: the numbers of positions differ.

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
    who = "transfer.attention_loss"
    settings = Settings(who)
    settings.choice("distance", distance, ("square", "norm"))
    settings.done()
    student, teacher = _pair(student, teacher)
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ShapeError(
            f"{who}: features of shapes {student.shape} and {teacher.shape} have other places; "
            "pool the larger ones."
        )
    apart = jnp.square(attention_map(student, power) - attention_map(teacher, power))
    if distance == "square":
        return apart.mean()
    square = apart.sum(1)
    some = square > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1.0)), 0.0).mean()


def _pair(student: ArrayLike, teacher: ArrayLike) -> tuple[Array, Array]:
    """Cast both arrays to float32, and stop the gradient of the teacher."""
    student, teacher = (jnp.asarray(x).astype(jnp.float32) for x in (student, teacher))
    return student, jax.lax.stop_gradient(teacher)


def _same_shape(who: str, student: ArrayLike, teacher: ArrayLike) -> tuple[Array, Array]:
    """Cast both arrays as `_pair` does; raise if their shapes differ."""
    student, teacher = _pair(student, teacher)
    if student.shape != teacher.shape or not student.ndim:
        raise ShapeError(
            f"{who}: the student's array has shape {student.shape}, the teacher's {teacher.shape}; "
            "give two of one shape, with one axis or more."
        )
    return student, teacher
