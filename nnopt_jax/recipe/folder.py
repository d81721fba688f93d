"""The folder of a run: one recipe each, everything in it written whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnopt_jax.errors import RecipeError
from nnopt_jax.recipe.load import build, unbuild
from nnopt_jax.recipe.schema import Recipe
from nnopt_jax.recipe.yaml import dump, parse
from nnopt_jax.report.summary import Summary
from nnopt_jax.report.writers import write_whole, writing


class Folder:
    """Names the files of a run.

    Args:
        path: the folder itself.

    Example:
        >>> from nnopt_jax.recipe.folder import Folder
        >>> str(Folder("runs/demo").artifact)
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

    def require_same(self, recipe: Recipe) -> None:
        """Checks that the folder is new, or that of this very recipe.

        Raises:
            RecipeError: it holds a run of another recipe; the text lists what differs.
        """
        if not self.recipe.exists():
            return
        held = parse(self.recipe.read_text(encoding="utf-8"), str(self.recipe))
        changes = [
            line for line in _changes(held, unbuild(recipe)) if not line.startswith("output:")
        ]
        if changes:
            listed = "\n".join(f"  {line}" for line in changes)
            raise RecipeError(
                f"run: {self.path} holds a run of another recipe:\n{listed}\n"
                "Give --set output=FOLDER for a run beside it, or --fresh to start again here."
            )

    def claim(self, recipe: Recipe, fresh: bool) -> None:
        """Makes the folder that of a recipe; where `fresh`, removes what an earlier run wrote.

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
            write_whole(self.recipe, dump(unbuild(recipe)))

    def held(self) -> Recipe | None:
        """The recipe of the run that has ended here; None where none has.

        Raises:
            RecipeError: it is no recipe any more.
        """
        if not (self.recipe.is_file() and self.artifact.is_file()):
            return None
        return build(parse(self.recipe.read_text(encoding="utf-8"), str(self.recipe)))

    def finished(self) -> Summary | None:
        """What the run that ended here had to tell; None where none has ended."""
        if not (self.result.exists() and self.artifact.exists()):
            return None
        return Summary.from_json(json.loads(self.result.read_text(encoding="utf-8")))


def _changes(held: Any, wanted: Any, key: str = "") -> Iterator[str]:
    """One line for each value that differs."""
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
