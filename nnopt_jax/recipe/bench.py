"""How fast a finished network is, packed and dense, for batches of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax import artifact
from nnopt_jax.arrays.nodes import materialize
from nnopt_jax.errors import Problems, RecipeError
from nnopt_jax.recipe.data import open_data
from nnopt_jax.recipe.earlier import left
from nnopt_jax.recipe.evaluate import network
from nnopt_jax.recipe.folder import Folder
from nnopt_jax.recipe.latency import ROUNDS, laid_out, latency
from nnopt_jax.recipe.schema import Recipe
from nnopt_jax.report import Latency, call_note, leaf_calls
from nnopt_jax.settings import Settings
from nnopt_jax.trace import OnPacked, on_packed
from nnopt_jax.transfer import Structure, load_model
from nnopt_jax.tree.paths import flatten, unflatten


@dataclass(frozen=True)
class Bench:
    """What `bench` returns.

    Args:
        rows: times, by the size of the batch.
        notes: which leaves a call makes dense, and what it takes once kernels are laid out.
    """

    rows: dict[int, Latency]
    notes: tuple[str, ...]


def bench(path: str | Path, batches: Sequence[int] = (1, 8, 128), rounds: int = ROUNDS) -> Bench:
    """Times a network on its packed parameters and on the dense ones, a call of each in turn.

    Args:
        path: the folder of a finished run, or a `.nnopt` file. Where the file holds a program, that
            is run, on ones and zeros; else the model of the run's recipe, on its test inputs.
        batches: examples in a call.
        rounds: calls of each, at most.

    Returns:
        The `Bench`.

    Raises:
        ValueRangeError: `batches` or `rounds` are no whole numbers from 1.
        RecipeError: nothing tells which network the parameters belong to, or its program takes
            no such batches.
        ArtifactError: the file is damaged.

    Example:
        >>> from nnopt_jax.recipe.bench import bench
        >>> bench("runs/demo", (1, 0))
        Traceback (most recent call last):
        nnopt_jax.errors.ValueRangeError: bench: batch=0 is not a whole number of 1 or more.
    """
    settings = Settings("bench")
    for batch in batches:
        settings.integer("batch", batch, 1)
    settings.integer("rounds", rounds, 1)
    settings.done()
    which = _network(Path(path))
    dense, compiled = materialize(which.params), jax.jit(which.run)
    ready = laid_out(which.params)
    rows, told, after = {}, {}, []
    for batch in batches:
        rest = which.inputs(batch)
        rows[batch] = latency(compiled, dense, which.params, *rest, rounds=rounds)
        calls = leaf_calls(which.params, which.run.report(which.params, *rest))
        told.setdefault(call_note(calls), []).append(str(batch))
        if ready is not None:
            took = latency(compiled, dense, ready, *rest, rounds=rounds)
            after.append(f"{batch}: {took.packed:.3g} ms, {took.ratio:.3g}x as fast as dense")
    apart = len(told) > 1
    notes = [f"Batch of {', '.join(of)}: {note}" if apart else note for note, of in told.items()]
    if after:
        notes.append(f"Laid out (nnopt.prepack, dense=True), by batch: {'; '.join(after)}.")
    return Bench(rows, tuple(notes))


class _Network(NamedTuple):
    """A network in use: `run(params, *inputs(batch))`."""

    run: OnPacked
    params: Any
    inputs: Callable[[int], tuple[Any, ...]]


def _network(path: Path) -> _Network:
    folder = Folder(path if path.is_dir() else path.parent)
    file = folder.artifact if path.is_dir() else path
    if file.exists() and artifact.inspect(file).program_bytes:
        model = load_model(file)
        structure = model.structure
        return _Network(on_packed(structure.apply), model.params, lambda n: _ones(structure, n))
    recipe = folder.held() if file == folder.artifact else None
    if recipe is None:
        raise RecipeError(
            f"bench: {path} is no finished run, and no file that holds a program. Give the folder "
            "of a run, or a file that `program: true` or nnopt_jax.transfer.save_model made."
        )
    return _of_run(recipe, file)


def _of_run(recipe: Recipe, file: Path) -> _Network:
    data = open_data(recipe)
    model, x = left(recipe, file, data), np.asarray(data.test.x)

    def inputs(batch: int) -> tuple[Any, ...]:
        return model.extra, jnp.asarray(x[np.arange(batch) % len(x)])

    return _Network(network(model), model.params, inputs)


def _ones(structure: Structure, batch: int) -> tuple[Any, ...]:
    """Inputs of a program: ones, and zeros of whole numbers, which every table has a row for."""
    exported = structure.programs["apply"].exported
    (_, inputs), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)

    problems = Problems("bench")

    def one(path: str, aval: Any) -> Any:
        shape = tuple(aval.shape)
        if shape and not isinstance(shape[0], int):
            shape = (batch, *shape[1:])
        if shape[:1] != (batch,) or not all(isinstance(size, int) for size in shape):
            problems.add(f"input {path}", f"is {aval.str_short()} to the program, of which no "
                                          f"batch of {batch} can be made")  # fmt: skip
            return None
        return jnp.full(shape, int(jnp.issubdtype(aval.dtype, jnp.floating)), aval.dtype)

    made = {path: one(path, aval) for path, aval in flatten(inputs).items()}
    problems.raise_as(RecipeError)
    return unflatten(inputs, made)
