"""Distillation of a hidden layer (FitNets)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnopt_jax.errors import ShapeError
from nnopt_jax.settings import Settings
from nnopt_jax.transfer.distill.pairs import as_pair, require_same_shape
from nnopt_jax.transform.given import require_key
from nnopt_jax.typing import Array, ArrayLike, Key

_NAME = "transfer.hint_loss"


def hint_loss(student: ArrayLike, teacher: ArrayLike, regressor: ArrayLike | None = None) -> Array:
    r"""How far a student's features are from its teacher's hint, through a learned map.

    $$ L = \mathrm{mean}\, ( h^t - h^s R )^2 $$

    The paper's loss is half the sum over features in place of the mean. The teacher gets no
    gradient.

    Args:
        student: features `(..., s)`, channels last.
        teacher: features `(..., t)`, all other axes alike.
        regressor: `R`, `(s, t)`, to be trained beside the student (`hint_regressor` starts it); for
            images that is the 1x1 convolution. None where `s = t` and features are to be the same.

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
    if regressor is not None:
        student, teacher = as_pair(student, teacher)
        matrix = jnp.asarray(regressor).astype(jnp.float32)
        wanted = (student.shape[-1:], teacher.shape[-1:])
        if matrix.ndim != 2 or wanted != (matrix.shape[:1], matrix.shape[1:]):
            raise ShapeError(
                f"{_NAME}: a regressor of shape {matrix.shape} does not lead from features "
                f"{student.shape} to {teacher.shape}; hint_regressor() makes one."
            )
        student = student @ matrix
    student, teacher = require_same_shape(_NAME, student, teacher)
    return jnp.square(teacher - student).mean()


def hint_regressor(key: Key, student: int, teacher: int) -> Array:
    r"""What the regressor of `hint_loss` starts from.

    $$ R_{ij} \sim \mathcal{N}(0, 1/s) $$

    Args:
        key: draws it.
        student: `s`, the student's features.
        teacher: `t`, the teacher's.

    Returns:
        `(s, t)` float32.

    Raises:
        ValueRangeError: a number of features is less than 1, or the key is none.

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
    require_key("transfer.hint_regressor", key)
    return jax.random.normal(key, (student, teacher), jnp.float32) * jnp.float32(student**-0.5)
