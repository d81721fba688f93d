"""The packed layouts of nodes in NumPy: a file needs no compiler."""

from __future__ import annotations

import numpy as np

from nnopt_jax.errors import ArtifactError


def gaps(mask: np.ndarray, width: int) -> np.ndarray:
    """The codes of `DeltaIndex`: masked elements before each kept one, `2^width - 1` to go on.

    Example:
        >>> gaps(np.array([False, True, False, False, False, True]), 2)
        array([1, 3, 0])
    """
    escape = 2**width - 1
    between = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    codes = np.full(int((between // escape + 1).sum()), escape, np.int64)
    codes[np.cumsum(between // escape + 1) - 1] = between % escape
    return codes


def mask_of(codes: np.ndarray, width: int, size: int) -> np.ndarray:
    """Undoes `gaps`, flat.

    Raises:
        ArtifactError: the codes reach beyond the mask.

    Example:
        >>> mask_of(np.array([1, 3, 0]), 2, 6).nonzero()[0]
        array([1, 5])
    """
    codes = codes.astype(np.int64)
    kept = codes != 2**width - 1
    places = (np.cumsum(codes + kept) - 1)[kept]
    if places.size and places[-1] >= size:
        raise ArtifactError(f"malformed: gaps reach {places[-1]} in a mask of {size}.")
    mask = np.zeros(size, bool)
    mask[places] = True
    return mask
