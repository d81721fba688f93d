"""Random projections that keep distances."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from nnopt_jax.compression.projection import Projection
from nnopt_jax.errors import ValueRangeError
from nnopt_jax.settings import Settings
from nnopt_jax.transform.given import require_key
from nnopt_jax.typing import Array, Key

_NAME = "compression.johnson_lindenstrauss"


def dimension(samples: int, epsilon: float) -> int:
    r"""How many components keep all distances among a number of samples.

    $$ k \ge \frac{4 \ln n}{\epsilon^2 / 2 - \epsilon^3 / 3} $$

    Args:
        samples: `n`, how many points there are.
        epsilon: the most by which a squared distance may change, above 0 and below 1.

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
    r"""A random projection: squared lengths are kept on average, and distances nearly.

    $$ P_{ij} \sim \mathcal{N}(0, 1/k), \qquad
       P_{ij} \in \sqrt{3/k}\, \{+1, 0, -1\} \text{ with odds } 1 : 4 : 1, \qquad
       P = \sqrt{d/k}\, Q $$

    Args:
        key: makes the matrix.
        features: `d`, of the inputs.
        components: `k`; or else `samples` and `epsilon`, from which `dimension` tells it.
        samples: number of points whose distances are to be kept.
        epsilon: by how much a squared distance among them may change.
        kind: `"gaussian"`; `"sparse"`: two thirds are zero, which sparse storage saves;
            `"orthogonal"`: `Q` has orthonormal columns of random direction, `k` at most `d`.

    Returns:
        The projection, in float32, of mean zero.

    Raises:
        ValueRangeError: a setting is out of range, or `epsilon` asks for more components than
            there are features.

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
    settings = Settings(_NAME)
    settings.integer("features", features, 1)
    settings.integer("components", components, 1, none=True)
    settings.choice("kind", kind, ("gaussian", "sparse", "orthogonal"))
    asked = (components is not None, samples is not None, epsilon is not None)
    if asked not in ((True, False, False), (False, True, True)):
        given = f"with samples={samples!r} and epsilon={epsilon!r}"
        settings.wrong("components", components, f"{given}: give components, or both of the rest.")
    settings.done()
    require_key(_NAME, key)
    count = components if components is not None else dimension(samples or 0, epsilon or 0.0)
    if count > features and (kind == "orthogonal" or components is None):
        raise ValueRangeError(
            f"{_NAME}: {count} components of {features} features"
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
    # Signs of the diagonal make the directions uniform, whatever the QR routine prefers.
    q = q * jnp.where(jnp.diagonal(r) < 0, jnp.float32(-1), jnp.float32(1))[None]
    return q * jnp.float32(math.sqrt(features / count))
