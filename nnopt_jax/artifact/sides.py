"""What arrays tell about each other: an output seldom computed is seldom read, or biased."""

from __future__ import annotations

import math

import numpy as np

from nnopt_jax.artifact.lines import bucket
from nnopt_jax.artifact.planes import Sides
from nnopt_jax.errors import ArtifactError

_SURE = 4.0
"""Standard deviations by which two counts must agree to be of use."""


class Profiles:
    """How full the outputs of earlier masks were, for the rows and columns of those to come.

    Rows of a mask are compared with the outputs of an earlier one, over and over where there are
    several for each (a convolution has kernel height times width of them); columns with outputs.

    Example:
        >>> profiles = Profiles()
        >>> profiles.note(np.eye(8, 4)[None] > 0)
        >>> profiles.classes(2, (2, 4, 6))
        (array([52, 52, 52, 52, 52, 52, 52, 52]), None)
    """

    def __init__(self) -> None:
        self._known: list[np.ndarray] = []

    def note(self, mask: np.ndarray) -> None:
        """Takes in a mask, as both ends do in the same order."""
        matrix = _matrix(mask)
        self._known.append(bucket(16 * matrix.sum(0) + 4, 16 * max(len(matrix), 1)))

    def best(self, mask: np.ndarray) -> int:
        """Finds the earlier masks that tell most about the rows and the columns of this one.

        Args:
            mask: `(..., outputs)`.

        Returns:
            A number for `classes`; 0 where none tells anything.
        """
        counts = [_matrix(mask).sum(axis) for axis in (1, 0)]
        most, best = [_SURE, _SURE], [0, 0]
        for back in range(1, len(self._known) + 1):
            for axis, classes in enumerate(self._of(back, mask.shape)):
                sure = _agreement(classes, counts[axis])
                if sure > most[axis]:
                    most[axis], best[axis] = sure, back
        return best[0] * (len(self._known) + 1) + best[1]

    def classes(self, number: int, shape: tuple[int, ...]) -> Sides:
        """Classes of the rows and of the columns of an array of some shape.

        Raises:
            ArtifactError: there are not so many masks, or their shapes do not meet.
        """
        if number >= (len(self._known) + 1) ** 2:
            raise ArtifactError("malformed: a stream refers to one that is not before it.")
        rows, columns = divmod(number, len(self._known) + 1)
        return self._of(rows, shape)[0], self._of(columns, shape)[1]

    def _of(self, back: int, shape: tuple[int, ...]) -> Sides:
        if not back or len(shape) < 2 or not math.prod(shape):
            return None, None
        profile, rows = self._known[-back], math.prod(shape[:-1])
        meets = len(profile) > 1 and rows % len(profile) == 0
        return (
            np.tile(profile, rows // len(profile)) if meets else None,
            profile if len(profile) == shape[-1] else None,
        )


def _agreement(classes: np.ndarray | None, counts: np.ndarray) -> float:
    """How sure it is that classes and counts go together, in standard deviations."""
    if classes is None or not np.ptp(classes) or not np.ptp(counts):
        return 0.0
    return abs(np.corrcoef(classes, counts)[0, 1]) * math.sqrt(len(counts))


def _matrix(mask: np.ndarray) -> np.ndarray:
    """Rows by outputs; a vector is one row."""
    if not mask.size:
        return np.zeros((0, 0), bool)
    return mask.reshape(-1, mask.shape[-1] if mask.ndim else 1)
