"""The loss and the metric of a classifier."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nnopt_jax.errors import ShapeError, ValueRangeError
from nnopt_jax.typing import Array, ArrayLike


def cross_entropy(logits: Array, labels: ArrayLike) -> Array:
    """Return the mean cross-entropy of integer labels.

    The loss is mean_i(logsumexp(logits_i) - logits_i[labels_i]), computed in float32.

    Args:
        logits: (..., classes), floating.
        labels: (...), integers in [0, classes); one outside makes the result NaN.

    Returns:
        A float32 scalar, in nats.

    Raises:
        ShapeError: `labels` does not have the shape of `logits` less its last axis.
        ValueRangeError: `labels` are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> print(cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])))
        1.3862944
    """
    labels = _checked("cross_entropy", logits, labels)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    # Mode "fill" turns a label outside of the classes into NaN; negative labels would index
    # backwards.
    index = jnp.where(labels < 0, logits.shape[-1], labels)[..., None]
    return -jnp.mean(jnp.take_along_axis(log_p, index, axis=-1, mode="fill"))


def error_rate(logits: Array, labels: ArrayLike) -> Array:
    """Return the fraction of examples whose largest logit is not that of the label.

    The rate is mean_i(argmax(logits_i) != labels_i), where the first of equal logits is the
    largest.

    Args:
        logits: (..., classes).
        labels: (...), integers.

    Returns:
        A float32 scalar in [0, 1].

    Raises:
        ShapeError: `labels` does not have the shape of `logits` less its last axis.
        ValueRangeError: `labels` are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> print(error_rate(jnp.array([[2.0, 1.0], [0.0, 3.0]]), jnp.array([0, 0])))
        0.5
    """
    labels = _checked("error_rate", logits, labels)
    return jnp.mean((jnp.argmax(logits, axis=-1) != labels).astype(jnp.float32))


def _checked(who: str, logits: Array, labels: ArrayLike) -> Array:
    labels = jnp.asarray(labels)
    wanted = jnp.shape(logits)[:-1]
    if jnp.ndim(logits) < 1 or labels.shape != wanted:
        raise ShapeError(
            f"zoo.losses.{who}: logits of shape {jnp.shape(logits)} want labels of shape {wanted}, "
            f"got {labels.shape}. One-hot labels? Pass labels.argmax(-1)."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueRangeError(
            f"zoo.losses.{who}: labels are {labels.dtype}, wanted integers. Numbers of classes? "
            "Pass labels.astype('int32')."
        )
    return labels
