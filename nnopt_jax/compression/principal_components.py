"""Principal component analysis (PCA) of data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nnopt_jax.compression.projection import Projection
from nnopt_jax.errors import NonFiniteError, ShapeError, ValueRangeError
from nnopt_jax.settings import Settings
from nnopt_jax.transform.validation import described

_NAME = "compression.pca"


def pca(
    x: Any,
    components: int | None = None,
    *,
    energy: float | None = None,
    whiten: bool = False,
) -> Projection:
    r"""Return the projection to the directions of greatest variance of the data (PCA).

    $$ C = \frac{1}{n - 1} \sum_i (x_i - \mu)(x_i - \mu)^T = V \Lambda V^T, \qquad P = V_k $$

    The covariance is summed over batches and decomposed in float64 on the host, so that the data
    may be larger than memory. The sign of a component makes its entry of greatest magnitude
    positive.

    Args:
        x: `(n, ...)`, with features on all axes after the first, or an iterable of such batches.
        components: `k`, the number of directions.
        energy: instead of `components`, the fraction of the variance to keep, above 0 and at most
            1.
        whiten: whether each component is scaled to variance 1 on the data.

    Returns:
        The projection, in float32.

    Raises:
        ValueRangeError: a setting is out of range, there are more components than examples or
            features, or the data varies in too few directions.
        NonFiniteError: the data holds NaN or infinity.
        ShapeError: batches differ in their number of features, or have no features.

    Example:
        >>> import numpy as np
        >>> import nnopt_jax as nnopt
        >>> line = np.outer([-1.0, 0.0, 1.0, 4.0], [3.0, 4.0])
        >>> nnopt.compression.pca(line, 1)["matrix"].round(4)
        Array([[0.6],
               [0.8]], dtype=float32)

    References:
        Pearson 1901, On Lines and Planes of Closest Fit; Hotelling 1933; sums over batches: Chan et
        al. 1983, Algorithms for Computing the Sample Variance.
    """
    settings = Settings(_NAME)
    settings.integer("components", components, 1, none=True)
    settings.number("energy", energy, 0, 1, above=True, none=True)
    settings.flag("whiten", whiten)
    if (components is None) == (energy is None):
        settings.wrong("components", components, f"and energy={energy!r}: give one of the two.")
    settings.done()
    found = _moments(x)
    most = min(found.count, found.mean.size)
    if components is not None and components > most:
        raise ValueRangeError(
            f"{_NAME}: components={components} of {found.count} examples of {found.mean.size} "
            f"features; give at most {most}."
        )
    variance, directions = _spectrum(found)
    kept = components or _enough(variance, float(energy or 1.0))
    if whiten:
        _check_varying(variance, kept)
        directions[:, :kept] /= np.sqrt(variance[:kept])[None]
    matrix, mean = directions[:, :kept].astype(np.float32), found.mean.astype(np.float32)
    return Projection(matrix=jnp.asarray(matrix), mean=jnp.asarray(mean))


class _RunningMoments(NamedTuple):
    """The number of examples, their mean, and the sum of squares about it."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray


def _moments(x: Any) -> _RunningMoments:
    batches: Iterable[Any] = [x] if hasattr(x, "shape") else x
    if not isinstance(batches, Iterable) or isinstance(batches, str | bytes | Mapping):
        raise ShapeError(f"{_NAME}: x is {described(x)}; give an array (n, features), or batches.")
    total: _RunningMoments | None = None
    for batch in batches:
        host = np.asarray(batch)
        if host.ndim < 2 or 0 in host.shape[1:]:
            raise ShapeError(f"{_NAME}: data of shape {host.shape}; give (n, features).")
        if not len(host):
            continue
        flat = host.reshape(len(host), -1).astype(np.float64)
        if not np.isfinite(flat).all():
            raise NonFiniteError(f"{_NAME}: the data hold NaN or infinity; leave those out.")
        mean = flat.mean(0)
        centered = flat - mean
        part = _RunningMoments(len(flat), mean, centered.T @ centered)
        total = part if total is None else _merged(total, part)
    if total is None:
        raise ValueRangeError(f"{_NAME}: there are no data.")
    return total


def _merged(a: _RunningMoments, b: _RunningMoments) -> _RunningMoments:
    if a.mean.shape != b.mean.shape:
        raise ShapeError(f"{_NAME}: batches of {a.mean.size} and of {b.mean.size} features.")
    count = a.count + b.count
    # Sums about the mean of each batch do not cancel, unlike raw second moments (Chan et al.).
    away = b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(away, away) * (a.count * b.count / count)
    return _RunningMoments(count, a.mean + away * (b.count / count), scatter)


def _spectrum(found: _RunningMoments) -> tuple[np.ndarray, np.ndarray]:
    """Return the variances in descending order, and the principal directions as columns."""
    variance, directions = np.linalg.eigh(found.scatter / max(found.count - 1, 1))
    # Rounding can make the smallest eigenvalues negative.
    variance, directions = np.maximum(variance[::-1], 0.0), directions[:, ::-1]
    top = np.abs(directions).argmax(0)
    return variance, directions * np.sign(directions[top, np.arange(len(top))])[None]


def _enough(variance: np.ndarray, energy: float) -> int:
    """Return the smallest number of directions that hold a fraction of the total variance."""
    total = variance.sum()
    if not total > 0:
        raise ValueRangeError(f"{_NAME}: the data do not vary; energy={energy} says nothing then.")
    # The cumulative sum may round to just below the total, which energy=1 must still reach.
    reached = np.cumsum(variance) >= energy * total * (1 - 1e-12)
    return int(reached.argmax()) + 1


def _check_varying(variance: np.ndarray, kept: int) -> None:
    """Raise if whitening would divide by a variance that is only a rounding error."""
    # The relative tolerance is that of `numpy.linalg.matrix_rank`.
    varying = int((variance > variance[0] * len(variance) * np.finfo(np.float64).eps).sum())
    if kept > varying:
        raise ValueRangeError(
            f"{_NAME}: whiten=True with {kept} components, and the data vary in {varying} "
            "directions only; give at most that many."
        )
