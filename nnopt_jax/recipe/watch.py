"""What a run tells while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Watch:
    """Hears what happens; every method does nothing until a subclass says more.

    Example:
        >>> from nnopt_jax.recipe.watch import Watch
        >>> Watch().row({"step": 1, "loss": 0.5})
    """

    def stage(self, name: str, place: str, steps: int, done: int) -> None:
        """A stage begins, or goes on after `done` of its `steps`; `place` is e.g. "2/3"."""

    def step(self, done: int) -> None:
        """So many steps of the stage are done."""

    def row(self, row: Mapping[str, Any]) -> None:
        """A row was written to `metrics.jsonl`."""

    def note(self, text: str) -> None:
        """Something worth a line."""
