"""The table of the axes of a model's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from nnopt_jax.columns import Tabular, aligned, counted, listed
from nnopt_jax.ops.axis_roles import Axes


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AxesTable(Tabular, Mapping[str, Axes]):
    """Axes by path, and the weights that methods take by default: `nnopt.graph(...).axes`.

    Args:
        found: by path the axes of each leaf that a product or a lookup uses. For a leaf that is
            looked up and multiplied (a tied embedding), the axes of its product.
        uses: by path the axes of every use, in the order of the program.
        left_out: weights that methods leave out by default, and why: embeddings that are only
            looked up, and the last product before the output.
        unknown: leaves without known axes, and why.

    Example:
        >>> from nnopt_jax.transform.axes_table import AxesTable
        >>> print(AxesTable({"fc/kernel": Axes(0, 1)}, {}, {}, {"fc/bias": "is added"}))
        leaf       contracted  output  batch  by default
        fc/kernel  0           1       -      taken
        fc/bias    -           -       -      left alone: is added
    """

    found: Mapping[str, Axes]
    uses: Mapping[str, tuple[Axes, ...]]
    left_out: Mapping[str, str]
    unknown: Mapping[str, str]

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        leaves = counted(len(self.found) + len(self.unknown), "leaf", "leaves")
        return f"{counted(len(self.weights), 'weight')} of {leaves}, {len(self.unknown)} unknown"

    @property
    def weights(self) -> tuple[str, ...]:
        """The leaves that methods take by default: weights of products and convolutions."""
        return tuple(path for path in self.found if path not in self.left_out)

    def __getitem__(self, path: str) -> Axes:
        """Return the axes of a leaf."""
        return self.found[path]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the paths of the leaves that have axes."""
        return iter(self.found)

    def __len__(self) -> int:
        """Return the number of leaves that have axes."""
        return len(self.found)

    def __str__(self) -> str:
        """Return the table as text."""
        cells: list[tuple[str, ...]] = [("leaf", "contracted", "output", "batch", "by default")]
        for path, axes in self.found.items():
            roles = [listed(role) for role in (axes.contracted, axes.output, axes.batch)]
            why = self.left_out.get(path)
            cells.append((path, *roles, "taken" if why is None else f"left out: {why}"))
        for path, why in self.unknown.items():
            cells.append((path, "-", "-", "-", f"left alone: {why}"))
        return "\n".join(aligned(cells))
