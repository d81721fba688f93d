"""The end of a run: packing, writing and measuring the file; and benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax import artifact
from nnopt_jax.arrays.nodes import is_node, materialize
from nnopt_jax.arrays.prepacking import prepack
from nnopt_jax.errors import ArtifactError, Problems, RecipeError
from nnopt_jax.recipe.dependencies import finished_model
from nnopt_jax.recipe.inputs import evaluate, file_tree, network, open_data, variables_of
from nnopt_jax.recipe.reader import dump, unbuild
from nnopt_jax.recipe.recipe_plan import Carry, RecipePlan
from nnopt_jax.recipe.run_folder import RunFolder
from nnopt_jax.report.leaf_report import call_note, leaf_calls, leaf_rows
from nnopt_jax.report.result import Latency, Measure, Result, latency_table, render
from nnopt_jax.settings import Settings
from nnopt_jax.trace import OnPacked, on_packed
from nnopt_jax.transfer import Structure, load_model, save_model
from nnopt_jax.tree.bit_counts import tree_bits
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.typing import Array, Params

__all__ = ["Benchmark", "bench", "finalize", "latency", "prepacked"]

_LATENCY_BATCH = 128
# Enough rounds for stable medians on a quiet machine, within a time that nobody notices.
ROUNDS, SECONDS, FEWEST = 100, 4.0, 5
IN_TURNS = (
    "Latency: medians of calls on dense and on packed parameters in turns; of the ratio likewise."
)


def finalize(
    plan: RecipePlan, carry: Carry, rows: Sequence[Mapping[str, Any]], folder: RunFolder
) -> Result:
    """Pack the parameters, write the file, and measure the parameters loaded from it.

    Args:
        plan: the plan of the run.
        carry: the training state after the last stage.
        rows: all rows of metrics.
        folder: the folder of the run.

    Returns:
        The result.

    Raises:
        ArtifactError: the file cannot be written, or differs from the packed parameters.
    """
    tx = plan.phases[-1].tx
    tree = file_tree(tx.pack(carry.params, carry.state), carry.extra)
    if plan.structure is not None:
        save_model(folder.artifact, plan.structure, tree)
    else:
        artifact.save(folder.artifact, tree)
    params, extra = variables_of(artifact.load(folder.artifact), carry.extra)
    dense = materialize(params)
    _check_equal(tx.apply(carry.params, carry.state), dense)
    sample = jnp.asarray(plan.data.test.x[:_LATENCY_BATCH])
    calls = leaf_calls(params, network(plan.model).report(params, extra, sample))
    return Result(
        title=plan.recipe.name,
        measures=tuple(_measures(plan, rows, params, dense, extra, sample, folder)),
        leaves=leaf_rows(params, artifact.sizes(folder.artifact), calls),
        rows=tuple(rows),
        recipe=dump(unbuild(plan.recipe)),
        notes=(call_note(calls), IN_TURNS),
    )


def _check_equal(trained: Params, loaded: Params) -> None:
    """Raise if the loaded parameters differ from those that the model computed with."""
    theirs = flatten(loaded)
    wrong = [
        path
        for path, leaf in flatten(trained).items()
        if path not in theirs or not np.array_equal(leaf, theirs[path])
    ]
    if wrong:
        raise ArtifactError(
            f"run: the file does not hold what the model computed with, in {', '.join(wrong)}. "
            "This is a bug of a transform or of the file format, please report it."
        )


def _measures(
    plan: RecipePlan,
    rows: Sequence[Mapping[str, Any]],
    params: Params,
    dense: Params,
    extra: Any,
    sample: Array,
    folder: RunFolder,
) -> Iterator[Measure]:
    """Yield the rows of the final table, which compares the dense and the stored model."""
    last = plan.phases[-1].stage.name
    before = next((p.stage.name for p in reversed(plan.phases) if not p.links), None)

    def logged(stage: str | None, name: str) -> list[float]:
        return [row[name] for row in rows if row["stage"] == stage and name in row]

    def percent(name: str, key: str, after: float, note: str = "") -> Measure:
        dense = [100 * value for value in logged(before, key)]
        return Measure(name, "%", dense[-1] if dense else None, 100 * after, note)

    def smaller(name: str, after: int) -> Measure:
        return Measure(name, "bytes", 4 * size, after, f"{4 * size / after:.1f}x smaller")

    size = sum(leaf.size for leaf in jax.tree.leaves(dense))
    zeros = sum(int((leaf == 0).sum()) for leaf in jax.tree.leaves(dense))
    run = jax.jit(network(plan.model))
    error = evaluate(run, plan.metric, params, extra, plan.data.test)
    on_disk = folder.artifact.stat().st_size
    yield percent("test error", "test_error", error, "read from the file")
    yield smaller("on disk", on_disk)
    yield smaller("in memory", -(-tree_bits(params) // 8))
    yield Measure("per weight", "bits", 32, 8 * on_disk / size, "on disk, everything counted")
    yield percent("zeros", "sparsity", zeros / size)
    dense_ms, packed_ms = (
        statistics.median(times) if (times := logged(stage, "step_ms")) else None
        for stage in (before, last)
    )
    note = f"stage {last}" if before is None else f"stage {before}, stage {last}"
    yield Measure("step", "ms", dense_ms, packed_ms, note)
    took = latency(run, dense, params, extra, sample)
    note = f"batch of {len(sample)}, packed {took.ratio:.2f}x as fast"
    yield Measure("latency", "ms", took.dense, took.packed, note)
    if (ready := prepacked(params)) is not None:
        took = latency(run, dense, ready, extra, sample)
        note = f"by nnopt.prepack before serving, {took.ratio:.2f}x as fast"
        yield Measure("prepacked", "ms", took.dense, took.packed, note)


def latency(
    run: Callable[..., Any],
    dense: Params,
    packed: Params,
    *rest: Any,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
) -> Latency:
    """Time a compiled function on dense and on packed parameters, in alternating calls.

    The speed of a shared machine drifts within seconds, but hardly between two consecutive calls.
    The order alternates from round to round. The first call of each kind compiles and is not
    counted.

    Args:
        run: `run(params, *rest)`.
        dense: the dense parameters.
        packed: the same parameters, packed.
        *rest: further arguments.
        rounds: the greatest number of calls of each kind.
        seconds: the time after which no new round begins, once five are done.

    Returns:
        The median times and their ratio.

    Example:
        >>> from nnopt_jax.recipe.measurement import latency
        >>> latency(lambda params: params, 1, 2, rounds=5).dense < 1000
        True
    """
    both = dense, packed
    for params in both:
        jax.block_until_ready(run(params, *rest))
    times: tuple[list[float], list[float]] = [], []
    begin = time.perf_counter()
    while len(times[0]) < rounds:
        if len(times[0]) >= FEWEST and time.perf_counter() - begin > seconds:
            break
        first = len(times[0]) % 2
        for which in (first, 1 - first):
            start = time.perf_counter()
            jax.block_until_ready(run(both[which], *rest))
            times[which].append(1000 * (time.perf_counter() - start))
    ours, theirs = times
    return Latency(
        statistics.median(ours),
        statistics.median(theirs),
        min(ours),
        min(theirs),
        # The bound avoids a division by zero if the clock is coarse.
        statistics.median(a / max(b, 1e-9) for a, b in zip(ours, theirs, strict=True)),
    )


def prepacked(packed: Params) -> Params | None:
    """Return the parameters prepacked for serving, for comparison with the packed ones.

    Returns:
        The result of `prepack(packed, dense=True)`; None if it changes no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.recipe.measurement import prepacked
        >>> prepacked({"bias": jnp.zeros(3)}) is None
        True
    """
    ready = prepack(packed, dense=True)
    pairs = zip(*(jax.tree.leaves(tree, is_leaf=is_node) for tree in (packed, ready)), strict=True)
    return ready if any(one is not other for one, other in pairs) else None


@dataclass(frozen=True, repr=False)
class Benchmark:
    """The times that `bench` measured; `str` is the table.

    Args:
        title: the name of the timed network.
        rows: the times for each batch size.
        notes: the leaves that a call materializes, and the time with prepacked kernels.
    """

    title: str
    rows: dict[int, Latency]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        """Return the ratio of times for each batch size."""
        ratios = ", ".join(f"{n}: {took.ratio:.3g}x" for n, took in self.rows.items())
        return f"Benchmark({self.title!r}: packed as fast as dense, by batch: {ratios})"

    def __str__(self) -> str:
        """Return the table of times, and the notes."""
        return "\n".join([render(latency_table(self.title, self.rows)), "", *self.notes])


def bench(
    path: str | Path, batches: Sequence[int] = (1, 8, 128), rounds: int = ROUNDS
) -> Benchmark:
    """Time a network on packed and on dense parameters, in alternating calls.

    Args:
        path: the folder of a finished run, or a `.nnopt` file. If the file holds a program, it is
            timed on inputs of ones (zeros for integers); otherwise the model of the run's recipe is
            timed on test inputs.
        batches: batch sizes.
        rounds: calls of each, at most.

    Returns:
        The times.

    Raises:
        ValueRangeError: `batches` or `rounds` are not whole numbers from 1.
        RecipeError: the network of the parameters is unknown, or its program does not take such
            batches.
        ArtifactError: the file is damaged.

    Example:
        >>> from nnopt_jax.recipe import bench
        >>> bench("runs/demo", (1, 0))
        Traceback (most recent call last):
        nnopt_jax.errors.ValueRangeError: bench: batch=0 is not a whole number of 1 or more.
    """
    settings = Settings("bench")
    for batch in batches:
        settings.integer("batch", batch, 1)
    settings.integer("rounds", rounds, 1)
    settings.done()
    run, params, inputs = _timed_network(Path(path))
    dense, ready, compiled = materialize(params), prepacked(params), jax.jit(run)
    rows, by_note, after = {}, {}, []
    for batch in batches:
        rest = inputs(batch)
        rows[batch] = latency(compiled, dense, params, *rest, rounds=rounds)
        note = call_note(leaf_calls(params, run.report(params, *rest)))
        by_note.setdefault(note, []).append(str(batch))
        if ready is not None:
            took = latency(compiled, dense, ready, *rest, rounds=rounds)
            after.append(f"{batch}: {took.packed:.3g} ms, {took.ratio:.3g}x as fast as dense")
    notes = [f"Batch of {', '.join(sizes)}: {note}" for note, sizes in by_note.items()]
    notes = notes if len(by_note) > 1 else list(by_note)
    if after:
        notes.append(f"Prepacked (nnopt.prepack, dense=True), by batch: {'; '.join(after)}.")
    return Benchmark(str(path), rows, tuple(notes))


def _timed_network(path: Path) -> tuple[OnPacked, Params, Callable[[int], tuple[Any, ...]]]:
    """Return the network as a function, its parameters, and a function that makes its inputs."""
    folder = RunFolder(path if path.is_dir() else path.parent)
    file = folder.artifact if path.is_dir() else path
    if file.exists() and artifact.inspect(file).program_bytes:
        loaded = load_model(file)
        structure = loaded.structure
        return on_packed(structure.apply), loaded.params, lambda n: _ones(structure, n)
    recipe = folder.finished_recipe() if file == folder.artifact else None
    if recipe is None:
        raise RecipeError(
            f"bench: {path} is neither a finished run nor a file with a program. Give the "
            "folder of a run, or a file that `program: true` or nnopt_jax.transfer.save_model made."
        )
    data = open_data(recipe)
    model, x = finished_model(recipe, file, data), data.test.x
    inputs = lambda batch: (model.extra, jnp.asarray(x[np.arange(batch) % len(x)]))  # noqa: E731
    return network(model), model.params, inputs


def _ones(structure: Structure, batch: int) -> tuple[Any, ...]:
    """Return inputs for a program: ones, and zeros for integers, which are valid indices."""
    exported = structure.programs["apply"].exported
    (_, inputs), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    problems, made = Problems("bench"), {}
    for path, aval in flatten(inputs).items():
        free = aval.shape and not isinstance(aval.shape[0], int)
        shape = (batch, *aval.shape[1:]) if free else aval.shape
        if shape[:1] == (batch,) and all(isinstance(size, int) for size in shape):
            value = int(jnp.issubdtype(aval.dtype, jnp.floating))
            made[path] = jnp.full(shape, value, aval.dtype)
        else:
            problems.add(f"input {path}", f"is {aval.str_short()} to the program, of which no "
                                          f"batch of {batch} can be made")  # fmt: skip
    problems.raise_as(RecipeError)
    return unflatten(inputs, made)
