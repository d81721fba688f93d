"""The end of a run: pack, write, load what was written, and measure that."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax import artifact
from nnopt_jax.arrays.nodes import materialize
from nnopt_jax.errors import ArtifactError
from nnopt_jax.recipe.evaluate import evaluate, forward, network
from nnopt_jax.recipe.folder import Folder
from nnopt_jax.recipe.latency import laid_out, latency
from nnopt_jax.recipe.load import unbuild
from nnopt_jax.recipe.phases import Carry
from nnopt_jax.recipe.program import in_file
from nnopt_jax.recipe.setup import Setup
from nnopt_jax.recipe.yaml import dump
from nnopt_jax.report.calls import call_note, leaf_calls
from nnopt_jax.report.leaves import leaf_rows
from nnopt_jax.report.summary import Latency, Measure, Summary
from nnopt_jax.transfer import save_model
from nnopt_jax.tree.bit_counts import tree_bits
from nnopt_jax.tree.paths import flatten
from nnopt_jax.typing import Array, Params

_LATENCY_BATCH = 128
IN_TURNS = (
    "Latency: medians of calls on dense and on packed parameters in turns; of the ratio likewise."
)


def finish(setup: Setup, carry: Carry, rows: Sequence[Mapping[str, Any]], to: Folder) -> Summary:
    """Packs the parameters, writes the file, and measures what is loaded from it.

    Args:
        setup: what `prepare` returned.
        carry: what the last stage left.
        rows: all rows of metrics.
        to: where the file goes.

    Returns:
        What the final table and the report show.

    Raises:
        ArtifactError: the file cannot be written, or does not hold what was packed.
    """
    tx = setup.phases[-1].tx
    packed = tx.pack(carry.params, carry.state)
    written = in_file(packed, carry.extra)
    if setup.structure is not None:
        save_model(to.artifact, setup.structure, written)
    else:
        artifact.save(to.artifact, written)
    loaded = artifact.load(to.artifact)
    variables = loaded if written is not packed else {"params": loaded}
    params = variables.pop("params")
    _require_equal(tx.apply(carry.params, carry.state), materialize(params))
    extra = {name: carry.extra[name] for name in carry.extra if name == "rngs"} | variables
    sample = jnp.asarray(setup.data.test.x[:_LATENCY_BATCH])
    calls = leaf_calls(params, network(setup.model).report(params, extra, sample))
    return Summary(
        title=setup.recipe.name,
        measures=tuple(_measures(setup, rows, params, extra, sample, to)),
        leaves=leaf_rows(params, artifact.sizes(to.artifact), calls),
        rows=tuple(rows),
        recipe=dump(unbuild(setup.recipe)),
        notes=(call_note(calls), IN_TURNS),
    )


def _require_equal(shown: Params, loaded: Params) -> None:
    """The law, checked on the very file: what was written is what the model saw."""
    theirs = flatten(loaded)
    wrong = [
        path
        for path, leaf in flatten(shown).items()
        if path not in theirs or not np.array_equal(leaf, theirs[path])
    ]
    if wrong:
        raise ArtifactError(
            f"run: the file does not hold what the model computed with, in {', '.join(wrong)}. "
            "This is a bug of a transform or of the file format, please report it."
        )


def _measures(
    setup: Setup,
    rows: Sequence[Mapping[str, Any]],
    params: Params,
    extra: Any,
    sample: Array,
    to: Folder,
) -> list[Measure]:
    """The final table: the dense model against the one in the file."""
    dense = next((p for p in reversed(setup.phases) if not p.links), None)
    before = None if dense is None else dense.stage.name
    shown = materialize(params)
    size = sum(leaf.size for leaf in jax.tree.leaves(shown))
    run = forward(setup.model)
    error = evaluate(run, setup.metric, params, extra, setup.data.test)
    on_disk, in_memory = to.artifact.stat().st_size, -(-tree_bits(params) // 8)
    took, ready = latency(run, shown, params, extra, sample), laid_out(params)
    zeros = sum(int((leaf == 0).sum()) for leaf in jax.tree.leaves(shown))
    last = setup.phases[-1].stage.name
    measures = [
        _percent("test error", _last(rows, before, "test_error"), error, "read from the file"),
        Measure("on disk", "bytes", 4 * size, on_disk, f"{4 * size / on_disk:.1f}x smaller"),
        Measure(
            "in memory",
            "bytes",
            4 * size,
            in_memory,
            f"{4 * size / in_memory:.1f}x smaller",
        ),
        Measure("per weight", "bits", 32, 8 * on_disk / size, "on disk, everything counted"),
        _percent("zeros", _last(rows, before, "sparsity"), zeros / size),
        Measure("step", "ms", _median(rows, before), _median(rows, last), _stages(before, last)),
        Measure("latency", "ms", took.dense, took.packed, _speed(took, len(sample))),
    ]
    if ready is not None:
        took = latency(run, shown, ready, extra, sample)
        note = f"by nnopt.prepack before serving, {took.ratio:.2f}x as fast"
        measures.append(Measure("laid out", "ms", took.dense, took.packed, note))
    return measures


def _percent(name: str, before: float | None, after: float, note: str = "") -> Measure:
    return Measure(name, "%", None if before is None else 100 * before, 100 * after, note)


def _speed(took: Latency, rows: int) -> str:
    return f"batch of {rows}, packed {took.ratio:.2f}x as fast"


def _stages(before: str | None, last: str) -> str:
    return f"stage {last}" if before is None else f"stage {before}, stage {last}"


def _last(rows: Sequence[Mapping[str, Any]], stage: str | None, name: str) -> float | None:
    found = [row[name] for row in rows if row["stage"] == stage and name in row]
    return found[-1] if found else None


def _median(rows: Sequence[Mapping[str, Any]], stage: str | None) -> float | None:
    times = [row["step_ms"] for row in rows if row["stage"] == stage and "step_ms" in row]
    return statistics.median(times) if times else None
