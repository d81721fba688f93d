"""The folder of a run: files written atomically, and rows of metrics."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnopt_jax.errors import RecipeError
from nnopt_jax.recipe.reader import build, dump, parse, unbuild
from nnopt_jax.recipe.schema import Recipe
from nnopt_jax.report.result import Result

__all__ = ["JsonLines", "RunFolder", "read_rows", "write_atomically", "writing"]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the file system into a `RecipeError` that names the file.

    Example:
        >>> from pathlib import Path
        >>> from nnopt_jax.recipe.run_folder import writing
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


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically: to a temporary file that is flushed and then renamed.

    Args:
        path: the file; an older one is replaced, or untouched after an error.
        text: the content of the file.

    Raises:
        RecipeError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> from nnopt_jax.recipe.run_folder import write_atomically
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(pathlib.Path(folder, "a.txt"), "whole")
        ...     pathlib.Path(folder, "a.txt").read_text()
        'whole'
    """
    part = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                # Without this, a power failure could leave an empty file under
                # the new name.
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file up to the first incomplete line.

    Example:
        >>> import pathlib
        >>> from nnopt_jax.recipe.run_folder import read_rows
        >>> read_rows(pathlib.Path("nowhere.jsonl"))
        []
    """
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class JsonLines:
    """A JSONL file to which rows are appended, with a copy of its rows in memory.

    Args:
        path: the file.
        upto: the last step to keep; later rows are dropped, because a resumed run writes them
            again.
        writes: whether rows are written to the file, which only one of several processes does.

    Example:
        >>> import pathlib, tempfile
        >>> from nnopt_jax.recipe.run_folder import JsonLines
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
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def append(self, row: Mapping[str, Any]) -> None:
        """Append one row to the file."""
        if self.writes:
            with writing(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        self.rows.append(dict(row))


class RunFolder:
    """The folder of one run of one recipe.

    Args:
        path: the path of the folder.

    Example:
        >>> from nnopt_jax.recipe.run_folder import RunFolder
        >>> str(RunFolder("runs/demo").artifact)
        'runs/demo/model.nnopt'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.artifact = self.path / "model.nnopt"
        self.result = self.path / "result.json"
        self.report = self.path / "report.html"

    def check_same(self, recipe: Recipe) -> None:
        """Raise if the folder holds a run of another recipe.

        Raises:
            RecipeError: it holds a run of another recipe; the error lists the differences.
        """
        if not self.recipe.exists():
            return
        changes = [
            line
            for line in _changes(self._read_recipe(), unbuild(recipe))
            if not line.startswith("output:")
        ]
        if changes:
            listed = "\n".join(f"  {line}" for line in changes)
            raise RecipeError(
                f"run: {self.path} holds a run of another recipe:\n{listed}\n"
                "Give --set output=FOLDER for a run beside it, or --fresh to start again here."
            )

    def claim(self, recipe: Recipe, fresh: bool) -> None:
        """Write the recipe into the folder; with `fresh`, first remove an earlier run.

        Raises:
            RecipeError: it cannot be written.
        """
        if fresh:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            for file in (self.result, self.report, self.artifact, self.metrics, self.recipe):
                file.unlink(missing_ok=True)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        if not self.recipe.exists():
            write_atomically(self.recipe, dump(unbuild(recipe)))

    def _read_recipe(self) -> Any:
        return parse(self.recipe.read_text(encoding="utf-8"), str(self.recipe))

    def finished_recipe(self) -> Recipe | None:
        """Return the recipe of the finished run; None if none has finished.

        Raises:
            RecipeError: the file is no longer a valid recipe.
        """
        there = self.recipe.is_file() and self.artifact.is_file()
        return build(self._read_recipe()) if there else None

    def finished(self) -> Result | None:
        """Return the result of the finished run; None if none has finished."""
        if not (self.result.exists() and self.artifact.exists()):
            return None
        return Result.from_json(json.loads(self.result.read_text(encoding="utf-8")))


def _changes(held: Any, wanted: Any, key: str = "") -> Iterator[str]:
    """Yield one line for each value in which two documents differ."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        pairs = [(name, held.get(name), wanted.get(name)) for name in {**held, **wanted}]
    elif isinstance(held, list) and isinstance(wanted, list) and len(held) == len(wanted):
        pairs = [(i, *pair) for i, pair in enumerate(zip(held, wanted, strict=True))]
    else:
        if held != wanted:
            yield f"{key}: {held!r} there, {wanted!r} here"
        return
    for name, ours, theirs in pairs:
        yield from _changes(ours, theirs, f"{key}.{name}" if key else str(name))
