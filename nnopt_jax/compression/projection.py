"""Linear projections of input features in front of a network, random or computed from data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict

import jax
import jax.numpy as jnp

from nnopt_jax.errors import CompositionError, ShapeError, ValueRangeError
from nnopt_jax.settings import Settings
from nnopt_jax.transform.validation import check_key, described
from nnopt_jax.typing import Array, ArrayLike, Key


class Projection(TypedDict):
    """An affine map to few features, as a dictionary of arrays that any tree may contain.

    A projection is trained, sharded, quantized and saved like other parameters.

    Args:
        matrix: float, `(features, components)`.
        mean: float, `(features,)`, which is subtracted first.

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
    r"""Map inputs to the low-dimensional space.

    $$ y = (x - \mu)\, P $$

    Args:
        projection: the result of `pca` or `johnson_lindenstrauss`, possibly trained further.
        x: `(batch, ...)`; all axes after the first are flattened to features.

    Returns:
        `(batch, components)`, in the dtype of the matrix.

    Raises:
        CompositionError: `projection` is not a projection.
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
    r"""Return the input nearest to the mean among all inputs that `project` maps to `y`.

    $$ \hat x = \mu + y\, P^+ $$

    For the orthonormal components of `pca`, this is the least-squares reconstruction.

    Args:
        projection: see `project`.
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
    """Put a projection in front of a model, for training and inference.

    Args:
        apply: a function `(params, features, ...) -> output` of a model that takes `(batch,
            components)`.
        learned: whether the projection is trained with the model. Otherwise its gradient is zero;
            mask it in the optimizer if that uses weight decay.

    Returns:
        A function `(params, x, ...) -> output` of raw inputs. Its parameters are `{"projection":
        Projection, "model": params of the model}`, one tree for any optimizer and transform. Other
        parameters raise a `CompositionError`.

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


def dimension(samples: int, epsilon: float) -> int:
    r"""Return the number of components that nearly preserve all distances between samples.

    $$ k \ge \frac{4 \ln n}{\epsilon^2 / 2 - \epsilon^3 / 3} $$

    Args:
        samples: `n`, the number of points.
        epsilon: the greatest relative change of a squared distance, above 0 and below 1.

    Returns:
        `k`, rounded up (scikit-learn's `johnson_lindenstrauss_min_dim` rounds down).

    Raises:
        ValueRangeError: a setting is out of range.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.compression.dimension(5000, 0.5)
        409

    References:
        Dasgupta and Gupta 2003, An Elementary Proof of a Theorem of Johnson and Lindenstrauss,
        theorem 2.1.
    """
    settings = Settings("compression.dimension")
    settings.integer("samples", samples, 1)
    settings.number("epsilon", epsilon, 0, 1, above=True)
    if epsilon == 1:
        settings.wrong("epsilon", epsilon, "is not a number below 1.")
    settings.done()
    return max(1, math.ceil(4 * math.log(samples) / (epsilon**2 / 2 - epsilon**3 / 3)))


def johnson_lindenstrauss(
    key: Key,
    features: int,
    components: int | None = None,
    *,
    samples: int | None = None,
    epsilon: float | None = None,
    kind: Literal["gaussian", "sparse", "orthogonal"] = "gaussian",
) -> Projection:
    r"""Return a random projection that nearly preserves distances.

    $$ P_{ij} \sim \mathcal{N}(0, 1/k), \qquad
       P_{ij} \in \sqrt{3/k}\, \{+1, 0, -1\} \text{ with odds } 1 : 4 : 1, \qquad
       P = \sqrt{d/k}\, Q $$

    Args:
        key: the key of the random matrix.
        features: `d`, the number of input features.
        components: `k`; if None, `dimension` computes it from `samples` and `epsilon`.
        samples: the number of points whose distances are preserved.
        epsilon: the greatest relative change of a squared distance between them.
        kind: `"gaussian"`; `"sparse"`, with two thirds zeros, which sparse storage omits; or
            `"orthogonal"`, where `Q` has orthonormal columns of random direction, with `k` at most
            `d`.

    Returns:
        The projection, in float32, with mean zero.

    Raises:
        ValueRangeError: a setting is out of range, or `epsilon` requires more components than there
            are features.

    Example:
        >>> import jax
        >>> import nnopt_jax as nnopt
        >>> made = nnopt.compression.johnson_lindenstrauss(jax.random.key(0), 784, 64)
        >>> made["matrix"].shape, float((made["matrix"] ** 2).sum().round()) / 784
        ((784, 64), 1.0)

    References:
        Johnson and Lindenstrauss 1984; Indyk and Motwani 1998 (gaussian); Achlioptas 2003,
        Database-friendly Random Projections, theorem 1.1 (sparse).
    """
    who = "compression.johnson_lindenstrauss"
    settings = Settings(who)
    settings.integer("features", features, 1)
    settings.integer("components", components, 1, none=True)
    settings.choice("kind", kind, ("gaussian", "sparse", "orthogonal"))
    asked = (components is not None, samples is not None, epsilon is not None)
    if asked not in ((True, False, False), (False, True, True)):
        given = f"with samples={samples!r} and epsilon={epsilon!r}"
        settings.wrong("components", components, f"{given}: give components, or both of the rest.")
    settings.done()
    check_key(who, key)
    count = components if components is not None else dimension(samples or 0, epsilon or 0.0)
    if count > features and (kind == "orthogonal" or components is None):
        raise ValueRangeError(
            f"{who}: {count} components of {features} features"
            + (f" for samples={samples}, epsilon={epsilon}" if components is None else "")
            + f"; give at most {features} components."
        )
    matrix = _drawn(key, features, count, kind)
    return Projection(matrix=matrix, mean=jnp.zeros(features, jnp.float32))


def _drawn(key: Key, features: int, count: int, kind: str) -> Array:
    shape = (features, count)
    if kind == "sparse":
        dice = jax.random.randint(key, shape, 0, 6)
        signs = (dice == 0).astype(jnp.float32) - (dice == 1).astype(jnp.float32)
        return signs * jnp.float32(math.sqrt(3 / count))
    normal = jax.random.normal(key, shape, jnp.float32)
    if kind == "gaussian":
        return normal * jnp.float32(1 / math.sqrt(count))
    q, r = jnp.linalg.qr(normal)
    # Multiplying by the signs of the diagonal makes the directions uniform for any QR routine.
    q = q * jnp.where(jnp.diagonal(r) < 0, jnp.float32(-1), jnp.float32(1))[None]
    return q * jnp.float32(math.sqrt(features / count))
