"""The commands, each a few lines over the library."""

from __future__ import annotations

import argparse
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import jax
from rich.console import Console

from nnopt_jax import artifact, parallel, recipe as recipes
from nnopt_jax.arrays.nodes import materialize, summary
from nnopt_jax.cli.progress import watch
from nnopt_jax.recipe.folder import Folder
from nnopt_jax.recipe.setup import prepare
from nnopt_jax.report import LeafRow, diff_table, latency_table, leaf_table, table
from nnopt_jax.transfer import load_structure
from nnopt_jax.transform import plan as plan_of
from nnopt_jax.tree import diff as tree_diff, flatten


def _console() -> Console:
    """Wide enough for the tables where the output is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def run(args: argparse.Namespace) -> None:
    """Runs a recipe and prints the final table."""
    recipe = recipes.load(args.recipe, args.set)
    start = time.monotonic()
    with _together(args):
        first = not args.distributed or jax.process_index() == 0
        with watch() if first else nullcontext() as progress:
            result = recipes.run(recipe, fresh=args.fresh, watch=progress)
    if result is None:
        return
    folder, console = Folder(recipe.folder), _console()
    console.print()
    console.print(table(result))
    console.print()
    for line in (*result.notes, f"Wrote {folder.artifact} and {folder.report}."):
        console.print(line, style="dim", highlight=False)
    console.print(f"{time.monotonic() - start:.0f} s", style="dim", highlight=False)


def _together(args: argparse.Namespace) -> AbstractContextManager[None]:
    """What a run is entered under: other processes, where there are any."""
    if not args.distributed:
        return nullcontext()
    where = {"processes": args.processes, "process": args.process}
    return parallel.distributed(args.coordinator, **where, heartbeat=args.heartbeat)


def plan(args: argparse.Namespace) -> None:
    """Prints what each stage's chain makes of the model."""
    setup = prepare(recipes.load(args.recipe, args.set), check_rules=not args.list)
    if args.list:
        for path, leaf in flatten(setup.model.params).items():
            print(f"{path}  {summary(leaf)}")
        return
    if setup.spread is not None:
        print(setup.spread.plan, end="\n\n")
    for phase in setup.phases:
        print(f"Stage {phase.stage.name}: {phase.steps:,} steps, ", end="")
        print(plan_of(phase.tx, setup.model.params) if phase.links else "no transforms")
        print()


def inspect(args: argparse.Namespace) -> None:
    """Prints a row for each leaf of a file, and what its program takes and gives."""
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
    """Prints how the models of two files differ."""
    left, right = (artifact.load(_artifact(name)) for name in (args.left, args.right))
    for line in tree_diff(materialize(left), materialize(right)):
        print(line)
    _console().print(diff_table(args.left, args.right, left, right))


def bench(args: argparse.Namespace) -> None:
    """Prints how long a call takes, dense and packed, for batches of several sizes."""
    found = recipes.bench(args.path, args.batch, args.rounds)
    console = _console()
    console.print(latency_table(args.path, found.rows))
    console.print()
    for note in found.notes:
        console.print(note, style="dim", highlight=False, markup=False)


def _artifact(name: str) -> Path:
    """A file as it is named, or that of a run's folder."""
    path = Path(name)
    return Folder(path).artifact if path.is_dir() else path


def data(args: argparse.Namespace) -> None:
    """Fetches a data set and prints its files."""
    from nnopt_jax.zoo.data import fetch_mnist

    for path in fetch_mnist(Path(args.dir) / args.name):
        print(path)
    print(f"Recipes find them by --set data.dir={args.dir} or NNOPT_DATA={args.dir}.")
