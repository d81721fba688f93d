"""Distillation of what a teacher says (Hinton)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnopt_jax.settings import Settings
from nnopt_jax.transfer.distill.pairs import require_same_shape
from nnopt_jax.typing import Array, ArrayLike

_NAME = "transfer.distillation_loss"


def distillation_loss(student: ArrayLike, teacher: ArrayLike, temperature: float = 4.0) -> Array:
    r"""How far a student's softened predictions are from its teacher's.

    .. math:: L = T^2 \, \frac{1}{n} \sum_i \mathrm{KL}\big(
        \mathrm{softmax}(z^t_i / T) \,\Vert\, \mathrm{softmax}(z^s_i / T) \big)

    The factor keeps gradients of one size at every temperature. Add it to the loss of the labels,
    as `alpha * distillation_loss(...) + (1 - alpha) * cross_entropy(...)`. The teacher gets no
    gradient.

    Args:
        student: logits `(..., classes)`.
        teacher: logits of the same shape.
        temperature: `T`, above 0; 1 leaves the predictions as they are.

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
    settings.number("temperature", temperature, 0, above=True)
    settings.done()
    student, teacher = require_same_shape(_NAME, student, teacher)
    mine, theirs = (jax.nn.log_softmax(z / temperature) for z in (student, teacher))
    # Of classes that the teacher excludes nothing is left: 0 log 0 = 0.
    share = jnp.exp(theirs)
    apart = jnp.where(share > 0, share * (theirs - mine), 0.0).sum(-1)
    return temperature**2 * apart.mean()
