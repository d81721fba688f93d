"""What a student shows beside what its teacher shows."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnopt_jax.errors import ShapeError
from nnopt_jax.typing import Array, ArrayLike


def as_pair(student: ArrayLike, teacher: ArrayLike) -> tuple[Array, Array]:
    """Both in float32, the teacher without a gradient."""
    student, teacher = (jnp.asarray(x).astype(jnp.float32) for x in (student, teacher))
    return student, jax.lax.stop_gradient(teacher)


def require_same_shape(who: str, student: ArrayLike, teacher: ArrayLike) -> tuple[Array, Array]:
    """As `as_pair`, of arrays that must lie alike."""
    student, teacher = as_pair(student, teacher)
    if student.shape != teacher.shape or not student.ndim:
        raise ShapeError(
            f"{who}: the student's array has shape {student.shape}, the teacher's {teacher.shape}; "
            "give two of one shape, with one axis or more."
        )
    return student, teacher
