"""Distillation of what a teacher says (Hinton)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnopt_jax.settings import Settings
from nnopt_jax.transfer.distill.pairs import require_same_shape
from nnopt_jax.typing import Array, ArrayLike

_NAME = "transfer.distillation_loss"


def distillation_loss(
    student: ArrayLike, teacher: ArrayLike, temperature: ArrayLike = 4.0
) -> Array:
    r"""How far a student's softened predictions are from its teacher's.

    $$ L = T^2 \, \frac{1}{n} \sum_i \mathrm{KL}\big(
       \mathrm{softmax}(z^t_i / T) \,\Vert\, \mathrm{softmax}(z^s_i / T) \big) $$

    The factor keeps gradients of one size at every temperature. Add it to the loss of the labels,
    as `alpha * distillation_loss(...) + (1 - alpha) * cross_entropy(...)`. The teacher gets no
    gradient.

    Args:
        student: logits `(..., classes)`.
        teacher: logits of the same shape.
        temperature: `T`, above 0; 1 leaves the predictions as they are. An array of one number
            may be traced, as that of a schedule under `jax.jit` is.

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
    settings = Settings(_NAME)
    settings.number("temperature", temperature, 0, above=True, array=True)
    settings.done()
    student, teacher = require_same_shape(_NAME, student, teacher)
    temperature = jnp.asarray(temperature, jnp.float32)
    return temperature**2 * _divergence(student / temperature, teacher / temperature).mean()


def _divergence(student: Array, teacher: Array) -> Array:
    r"""KL of two softmaxes over the last axis, to rounding of itself however small it is.

    $$ \sum_c p_c (e^{d_c} - 1 - d_c), \qquad d = \log q - \log p $$

    Where `p` and `q` are close, terms of $\sum p (-d)$ are as large as `d` and their sum as
    small as its square; those here are none of them below 0, and of the size of their sum.
    """
    mine, theirs = (jnp.exp(jax.nn.log_softmax(z)) for z in (student, teacher))
    total, whole = (jax.nn.logsumexp(z, -1, keepdims=True) for z in (student, teacher))
    # Of classes that the teacher excludes only q is left: 0 log 0 = 0.
    some = theirs > 0
    apart = jnp.where(some, (student - teacher) - (total - whole), 0.0)
    near = some & (apart < 1)
    close = theirs * _excess(jnp.where(near, apart, 0.0))
    return jnp.where(near, close, mine - theirs - theirs * apart).sum(-1)


def _excess(d: Array) -> Array:
    """`exp(d) - 1 - d`, where `d` is small by its series, which cancels nothing."""
    small = jnp.abs(d) < 0.1
    x = jnp.where(small, d, 0.0)
    series = x * x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5)))
    return jnp.where(small, series, jnp.expm1(d) - d)
