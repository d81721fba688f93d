"""What one layer tells about the next: an output that is seldom computed is seldom read."""

from __future__ import annotations

import math

import numpy as np

from nnopt_jax.artifact.lines import bucket
from nnopt_jax.errors import ArtifactError

_SURE = 4.0
"""Standard deviations by which two counts must agree to be of use."""


class Sides:
    """Counts of the masks coded so far; classes of rows for the next one.

    Example:
        >>> sides = Sides()
        >>> sides.note(np.eye(8, 4)[None] > 0)
        >>> sides.classes(1, (2, 4, 6))
        array([52, 52, 52, 52, 52, 52, 52, 52])
    """

    def __init__(self) -> None:
        self._densities: list[np.ndarray] = []

    def note(self, mask: np.ndarray) -> None:
        """Takes in a mask, as both ends do in the same order."""
        matrix = _matrix(mask)
        self._densities.append(bucket(16 * matrix.sum(0) + 4, 16 * max(len(matrix), 1)))

    def best(self, mask: np.ndarray) -> int:
        """Finds the earlier mask whose columns tell most about the rows of this one.

        Args:
            mask: `(..., outputs)`.

        Returns:
            How many masks ago that was; 0 where none tells anything.
        """
        best, most = 0, _SURE
        counts = _matrix(mask).sum(1)
        for back in range(1, len(self._densities) + 1):
            classes = self.classes(back, mask.shape)
            if classes is None or not np.ptp(classes) or not np.ptp(counts):
                continue
            sure = abs(np.corrcoef(classes, counts)[0, 1]) * math.sqrt(len(counts))
            if sure > most:
                best, most = back, sure
        return best

    def classes(self, back: int, shape: tuple[int, ...]) -> np.ndarray | None:
        """Classes of the rows of an array of some shape; None where the shapes do not meet.

        Raises:
            ArtifactError: there were not so many masks.
        """
        if not back:
            return None
        if back > len(self._densities):
            raise ArtifactError("malformed: a stream refers to one that is not before it.")
        density, rows = self._densities[-back], math.prod(shape[:-1])
        if len(density) < 2 or len(shape) < 2 or not rows or rows % len(density):
            return None
        return np.tile(density, rows // len(density))


def _matrix(mask: np.ndarray) -> np.ndarray:
    """Rows by outputs; what has no rows counts as none."""
    if mask.ndim < 2 or not mask.size:
        return np.zeros((0, 0), bool)
    return mask.reshape(-1, mask.shape[-1])
