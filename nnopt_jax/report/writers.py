"""Files that are never half: whole ones by rename, rows by appending."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnopt_jax.errors import RecipeError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what goes wrong with a disk into an error that names the file.

    Example:
        >>> from pathlib import Path
        >>> from nnopt_jax.report.writers import writing
        >>> with writing(Path("a.json")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        nnopt_jax.errors.RecipeError: cannot write a.json: No space left on device. Free some space or choose another folder, and run the same command again.
    """  # noqa: E501 - printed by the doctest
    try:
        yield
    except OSError as error:
        raise RecipeError(
            f"cannot write {path}: {error.strerror or error}. Free some space or choose another "
            "folder, and run the same command again."
        ) from error


def write_whole(path: Path, text: str) -> None:
    """Writes a text file beside its place, flushes it to the disk, and renames it.

    Args:
        path: the file; an older one is replaced, or left as it was.
        text: its content.

    Raises:
        RecipeError: it cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> from nnopt_jax.report.writers import write_whole
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(pathlib.Path(folder, "a.txt"), "whole")
        ...     pathlib.Path(folder, "a.txt").read_text()
        'whole'
    """
    part = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; a last line that was cut short is left out.

    Example:
        >>> import pathlib
        >>> from nnopt_jax.report.writers import read_rows
        >>> read_rows(pathlib.Path("nowhere.jsonl"))
        []
    """
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class JsonLines:
    """Appends rows to a JSONL file and keeps them at hand.

    Args:
        path: the file.
        upto: rows of later steps are dropped, because a resumed run writes them again.
        writes: whether rows go into the file; of several processes one writes.

    Example:
        >>> import pathlib, tempfile
        >>> from nnopt_jax.report.writers import JsonLines
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lines = JsonLines(pathlib.Path(folder, "m.jsonl"), upto=0)
        ...     lines.append({"step": 1, "loss": 0.5})
        ...     JsonLines(lines.path, upto=1).rows
        [{'step': 1, 'loss': 0.5}]
    """

    def __init__(self, path: Path, upto: int, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self.rows = [row for row in read_rows(path) if row.get("step", 0) <= upto]
        if writes:
            write_whole(path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds one row; it is in the file when this returns."""
        if self.writes:
            with writing(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        self.rows.append(dict(row))
