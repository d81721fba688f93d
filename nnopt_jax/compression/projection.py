"""A linear projection of input features in front of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp

from nnopt_jax.errors import CompositionError, ShapeError
from nnopt_jax.settings import Settings
from nnopt_jax.transform.given import described
from nnopt_jax.typing import Array, ArrayLike


class Projection(TypedDict):
    """An affine map to few features: a dictionary of arrays, so that any tree may hold it.

    It trains, shards, quantizes and lies in a `.nnopt` file as any other parameters do.

    Args:
        matrix: float, `(features, components)`.
        mean: float, `(features,)`: what is taken away first.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.compression import Projection
        >>> sorted(Projection(matrix=jnp.eye(2), mean=jnp.zeros(2)))
        ['matrix', 'mean']
    """

    matrix: Array
    mean: Array


def _parts(who: str, projection: Any) -> tuple[Array, Array]:
    if not (isinstance(projection, Mapping) and {"matrix", "mean"} <= projection.keys()):
        raise CompositionError(
            f"compression.{who}: projection is {described(projection)} without matrix and mean; "
            "give what compression.pca or johnson_lindenstrauss returned."
        )
    return projection["matrix"], projection["mean"]


def project(projection: Mapping[str, Any], x: ArrayLike) -> Array:
    r"""Maps inputs to the low-dimensional space.

    $$ y = (x - \mu)\, P $$

    Args:
        projection: what `pca` or `johnson_lindenstrauss` returned, trained on or not.
        x: `(batch, ...)`; all axes after the first are one run of features.

    Returns:
        `(batch, components)`, in the dtype of the matrix.

    Raises:
        CompositionError: `projection` is none.
        ShapeError: the inputs have another number of features.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> last = {"matrix": jnp.array([[0.0], [2.0]]), "mean": jnp.array([1.0, 1.0])}
        >>> nnopt.compression.project(last, jnp.array([[5.0, 4.0], [0.0, 1.0]]))
        Array([[6.],
               [0.]], dtype=float32)
    """
    matrix, mean = _parts("project", projection)
    x = jnp.asarray(x)
    count = math.prod(x.shape[1:])
    if x.ndim < 2 or count != matrix.shape[0]:
        raise ShapeError(
            f"compression.project: inputs of shape {x.shape} have {count if x.ndim > 1 else 'no'} "
            f"features an example, and the projection takes {matrix.shape[0]}."
        )
    flat = x.reshape(x.shape[0], count).astype(matrix.dtype)
    return (flat - mean[None].astype(matrix.dtype)) @ matrix


def lift(projection: Mapping[str, Any], y: ArrayLike) -> Array:
    r"""Maps back: of all inputs that `project` maps to `y`, the one nearest to the mean.

    $$ \hat x = \mu + y\, P^+ $$

    For the orthonormal components of `pca` that is the best reconstruction in squares.

    Args:
        projection: as for `project`.
        y: `(batch, components)`.

    Returns:
        `(batch, features)`.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> last = {"matrix": jnp.array([[0.0], [2.0]]), "mean": jnp.array([1.0, 1.0])}
        >>> nnopt.compression.lift(last, jnp.array([[6.0]])).round(4)
        Array([[1., 4.]], dtype=float32)
    """
    matrix, mean = _parts("lift", projection)
    y = jnp.asarray(y)
    if y.ndim != 2 or y.shape[1] != matrix.shape[1]:
        raise ShapeError(
            f"compression.lift: {y.shape} is not (batch, {matrix.shape[1]}), which the projection "
            "maps to."
        )
    return mean[None] + y.astype(matrix.dtype) @ jnp.linalg.pinv(matrix)


def projected(apply: Callable[..., Any], *, learned: bool = True) -> Callable[..., Any]:
    """Puts a projection in front of a model, in training as in inference.

    Args:
        apply: `(params, features, ...) -> output`, of a model that takes `(batch, components)`.
        learned: whether the projection trains with the model. Otherwise its gradient is zero;
            weight decay, which needs none, is the optimizer's to mask.

    Returns:
        `(params, x, ...) -> output` of raw inputs; its parameters are
        `{"projection": Projection, "model": params of the model}`, one tree for any optimizer and
        any transform. Other parameters are a `CompositionError`.

    Raises:
        ValueRangeError: `learned` is neither True nor False.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> apply = nnopt.compression.projected(lambda params, x: x * params)
        >>> first = {"matrix": jnp.array([[1.0], [0.0]]), "mean": jnp.zeros(2)}
        >>> apply({"projection": first, "model": 10.0}, jnp.array([[3.0, 4.0]]))
        Array([[30.]], dtype=float32)
    """
    settings = Settings("compression.projected")
    settings.flag("learned", learned)
    settings.done()

    def run(params: Mapping[str, Any], x: ArrayLike, *args: Any, **kwargs: Any) -> Any:
        if not (isinstance(params, Mapping) and {"projection", "model"} <= params.keys()):
            raise CompositionError(
                "compression.projected: the parameters are not "
                "{'projection': what pca returned, 'model': parameters of the model}."
            )
        projection = params["projection"]
        if not learned:
            projection = jax.lax.stop_gradient(projection)
        return apply(params["model"], project(projection, x), *args, **kwargs)

    return run
