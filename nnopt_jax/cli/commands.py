"""The commands of the command line; each is a few calls of the library."""

from __future__ import annotations

import argparse
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import jax
from rich.console import Console

from nnopt_jax import artifact, parallel, recipe as recipes
from nnopt_jax.arrays.nodes import materialize, summary
from nnopt_jax.cli.progress import show_progress
from nnopt_jax.recipe.run_folder import RunFolder
from nnopt_jax.report import LeafRow, diff_table, latency_table, leaf_table, result_table
from nnopt_jax.transfer import load_structure
from nnopt_jax.tree import diff as tree_diff, flatten


def _console() -> Console:
    """Return a console, whose width fits the tables if the output is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def run(args: argparse.Namespace) -> None:
    """Run a recipe and print the final table."""
    recipe = recipes.load(args.recipe, args.set)
    start = time.monotonic()
    with _process_group(args):
        first = not args.distributed or jax.process_index() == 0
        with show_progress() if first else nullcontext() as callback:
            result = recipes.run(recipe, fresh=args.fresh, callback=callback)
    if result is None:
        return
    folder, console = RunFolder(recipe.folder), _console()
    console.print()
    console.print(result_table(result))
    console.print()
    for line in (*result.notes, f"Wrote {folder.artifact} and {folder.report}."):
        console.print(line, style="dim", highlight=False)
    console.print(f"{time.monotonic() - start:.0f} s", style="dim", highlight=False)


def _process_group(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Return the context that joins this process to a run of several, or an empty context."""
    if not args.distributed:
        return nullcontext()
    where = {"processes": args.processes, "process": args.process}
    return parallel.distributed(args.coordinator, **where, heartbeat=args.heartbeat)


def plan(args: argparse.Namespace) -> None:
    """Print the plan of each stage: the form of each leaf and its size."""
    made = recipes.prepare(recipes.load(args.recipe, args.set), check_rules=not args.list)
    if args.list:
        for path, leaf in flatten(made.model.params).items():
            print(f"{path}  {summary(leaf)}")
        return
    print(made)


def inspect(args: argparse.Namespace) -> None:
    """Print a row for each leaf of a file, and the inputs and outputs of its program."""
    path = _artifact(args.file)
    found = artifact.inspect(path)
    rows = tuple(
        LeafRow(row.path, row.expression, row.shape, round(row.file_bytes), 8 * row.memory_bytes)
        for row in found.rows
    )
    console = _console()
    console.print(leaf_table(str(path), rows, found.file_bytes, found.program_bytes))
    if found.program_bytes:
        console.print()
        console.print(str(load_structure(path)), highlight=False, markup=False)


def diff(args: argparse.Namespace) -> None:
    """Print a table of the differences between the models of two files."""
    left, right = (artifact.load(_artifact(name)) for name in (args.left, args.right))
    for line in tree_diff(materialize(left), materialize(right)):
        print(line)
    _console().print(diff_table(args.left, args.right, left, right))


def bench(args: argparse.Namespace) -> None:
    """Print the time of a call, dense and packed, for several batch sizes."""
    found = recipes.bench(args.path, args.batch, args.rounds)
    console = _console()
    console.print(latency_table(args.path, found.rows))
    console.print()
    for note in found.notes:
        console.print(note, style="dim", highlight=False, markup=False)


def _artifact(name: str) -> Path:
    """Return the path of a file, or of the artifact in the folder of a run."""
    path = Path(name)
    return RunFolder(path).artifact if path.is_dir() else path


def data(args: argparse.Namespace) -> None:
    """Fetch a data set and print its files."""
    from nnopt_jax.zoo.data import fetch_mnist

    for path in fetch_mnist(Path(args.dir) / args.name):
        print(path)
    print(f"Recipes find them by --set data.dir={args.dir} or NNOPT_DATA={args.dir}.")
