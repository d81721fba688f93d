"""Progress on a terminal, or lines where there is none."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from nnopt_jax.recipe.watch import Watch

_log = logging.getLogger("nnopt_jax.cli")
_SECONDS_BETWEEN_LINES = 5.0


def tell(row: Mapping[str, Any]) -> str:
    """A row of metrics on one line.

    Example:
        >>> from nnopt_jax.cli.progress import tell
        >>> tell({"step": 40, "epoch": 2, "loss": 0.5, "sparsity": 0.25, "valid_error": 0.031})
        'epoch 2  loss 0.5000  zeros 25.0 %  valid error 3.10 %'
    """
    words = [f"epoch {row['epoch']}", f"loss {row['loss']:.4f}"]
    if row["sparsity"] >= 0.0005:
        words.append(f"zeros {100 * row['sparsity']:.1f} %")
    for name in ("valid_error", "test_error"):
        if name in row:
            words.append(f"{name.replace('_', ' ')} {100 * row[name]:.2f} %")
    return "  ".join(words)


class Lines(Watch):
    """A log line now and then: at the end of a stage, and every few seconds between.

    Example:
        >>> from nnopt_jax.cli.progress import Lines
        >>> Lines().note("going on after step 40")
    """

    def __init__(self) -> None:
        self._next = 0.0
        self._stage = ""

    def stage(self, name: str, place: str, steps: int, done: int) -> None:
        """Says which stage begins."""
        self._stage = f"{place} {name}"
        _log.info("%s: %d steps%s", self._stage, steps, f", {done} done" if done else "")

    def row(self, row: Mapping[str, Any]) -> None:
        """Says how far it is."""
        ends_epoch, ends_stage = "valid_error" in row, "test_error" in row
        if ends_stage or (ends_epoch and time.monotonic() >= self._next):
            _log.info("%s: %s", self._stage, tell(row))
            self._next = time.monotonic() + _SECONDS_BETWEEN_LINES

    def note(self, text: str) -> None:
        """Passes it on."""
        _log.info("%s", text)


class Bars(Watch):
    """A bar for each stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: Any = None

    def stage(self, name: str, place: str, steps: int, done: int) -> None:
        """Adds a bar."""
        self._task = self._progress.add_task(
            f"{place} {name}", total=steps, completed=done, said=""
        )

    def step(self, done: int) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=done)

    def row(self, row: Mapping[str, Any]) -> None:
        """Puts the newest numbers beside the bar."""
        if "valid_error" in row:
            self._progress.update(self._task, said=tell(row))

    def note(self, text: str) -> None:
        """Prints above the bars."""
        self._progress.console.print(text)


@contextmanager
def watch() -> Iterator[Watch]:
    """Bars where stderr is a terminal, lines elsewhere.

    Example:
        >>> from nnopt_jax.cli.progress import watch
        >>> with watch() as progress:
        ...     progress.note("hello")
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("[dim]{task.fields[said]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield Bars(progress)
