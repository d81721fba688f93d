"""Progress of a run: bars on a terminal, log lines elsewhere."""

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

from nnopt_jax.recipe import Callback

_log = logging.getLogger("nnopt_jax.cli")
_SECONDS_BETWEEN_LINES = 5.0


def describe_row(row: Mapping[str, Any]) -> str:
    """Return a row of metrics as one line.

    Example:
        >>> from nnopt_jax.cli.progress import describe_row
        >>> describe_row(
        ...     {"step": 40, "epoch": 2, "loss": 0.5, "sparsity": 0.25, "valid_error": 0.031}
        ... )
        'epoch 2  loss 0.5000  zeros 25.0 %  valid error 3.10 %'
    """
    words = [f"epoch {row['epoch']}", f"loss {row['loss']:.4f}"]
    if row["sparsity"] >= 0.0005:
        words.append(f"zeros {100 * row['sparsity']:.1f} %")
    for name in ("valid_error", "test_error"):
        if name in row:
            words.append(f"{name.replace('_', ' ')} {100 * row[name]:.2f} %")
    return "  ".join(words)


class Lines(Callback):
    """A callback that logs a line at the end of a stage and every few seconds.

    Example:
        >>> from nnopt_jax.cli.progress import Lines
        >>> Lines().note("continuing after step 40")
    """

    def __init__(self) -> None:
        self._next = 0.0
        self._stage = ""

    def stage(self, name: str, place: str, steps: int, done: int) -> None:
        """Log the start of a stage."""
        self._stage = f"{place} {name}"
        _log.info("%s: %d steps%s", self._stage, steps, f", {done} done" if done else "")

    def row(self, row: Mapping[str, Any]) -> None:
        """Log the newest metrics."""
        ends_epoch, ends_stage = "valid_error" in row, "test_error" in row
        if ends_stage or (ends_epoch and time.monotonic() >= self._next):
            _log.info("%s: %s", self._stage, describe_row(row))
            self._next = time.monotonic() + _SECONDS_BETWEEN_LINES

    def note(self, text: str) -> None:
        """Log a remark."""
        _log.info("%s", text)


class Bars(Callback):
    """A callback that shows a progress bar for each stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: Any = None

    def stage(self, name: str, place: str, steps: int, done: int) -> None:
        """Add the bar of a stage."""
        self._task = self._progress.add_task(
            f"{place} {name}", total=steps, completed=done, described=""
        )

    def step(self, done: int) -> None:
        """Advance the bar."""
        self._progress.update(self._task, completed=done)

    def row(self, row: Mapping[str, Any]) -> None:
        """Show the newest metrics beside the bar."""
        if "valid_error" in row:
            self._progress.update(self._task, described=describe_row(row))

    def note(self, text: str) -> None:
        """Print a remark above the bars."""
        self._progress.console.print(text)


@contextmanager
def show_progress() -> Iterator[Callback]:
    """Show bars if stderr is a terminal, and lines otherwise.

    Example:
        >>> from nnopt_jax.cli.progress import show_progress
        >>> with show_progress() as progress:
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
        TextColumn("[dim]{task.fields[described]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield Bars(progress)
