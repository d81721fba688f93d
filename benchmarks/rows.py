"""Every row of the README's table of methods, measured once on full MNIST.

    nnopt data mnist
    python benchmarks/rows.py                       # all rows: some hours on two cores
    python benchmarks/rows.py pruning.rigl          # those whose name holds one of these words

A row is a recipe: it trains dense, then under the row's transforms (rows `from scratch` leave the
first part out, and are compared with the dense run of the same network), writes one `.nnopt` file,
loads it back and measures what was loaded. 5,000 training images are held back; no setting was
chosen on the test set, which is read after the last step. `step` is the median ratio of the time of
a transformed step to that of a plain one, taken in turns. A finished row is not run again, and an
interrupted one goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from interleave import interleave
from rich.console import Console
from rich.table import Table

from nnopt_jax import recipe
from nnopt_jax.recipe.measure import measure
from nnopt_jax.recipe.phases import Carry, make_step
from nnopt_jax.recipe.setup import prepare

KERNELS = "**/kernel"


class Network(NamedTuple):
    """How a network is trained.

    Args:
        model: by its zoo name.
        dense: epochs before the transforms.
        after: epochs under them.
        rate: learning rate of Adam at the start, falling to 0 by a cosine.
        after_rate: the same under the transforms.
    """

    model: str
    dense: int
    after: int
    rate: float
    after_rate: float


NETWORKS = {
    "lenet_300_100": Network("nnopt_jax.zoo.lenet:lenet_300_100", 10, 10, 2e-3, 1e-3),
    "lenet5": Network("nnopt_jax.zoo.lenet:lenet5", 6, 6, 2e-3, 1e-3),
    "mlp": Network("nnopt_jax.zoo.mlp:mlp", 10, 40, 2e-3, 3e-3),
}


class Row(NamedTuple):
    """One line of the table.

    Args:
        links: the transforms, as a recipe names them.
        network: a key of `NETWORKS`.
        scratch: whether the transforms are there from the first step, with all epochs theirs.
        seeds: how many runs are averaged.
        model: another model than that of the network.
    """

    links: list[dict[str, Any]]
    network: str = "lenet_300_100"
    scratch: bool = False
    seeds: int = 1
    model: str | None = None


def link(method: str, **settings: Any) -> dict[str, Any]:
    """One transform on all kernels."""
    return {method: {"where": KERNELS, **settings}}


def cubic(sparsity: float) -> dict[str, Any]:
    """From nothing to a sparsity in the first 60 % of the steps."""
    return {"source": "nnopt_jax.pruning:cubic", "sparsity": sparsity, "steps": "60%"}


ROWS: dict[str, Row] = {
    "dense": Row([]),
    "dense lenet5": Row([], "lenet5"),
    "compression.codebook": Row([link("compression.codebook", clusters=16, learned=True)]),
    "quantization.uniform": Row(
        [link("quantization.uniform", bits=8, granularity="channel", every=10)]
    ),
    "pruning.magnitude": Row([link("pruning.magnitude", sparsity=cubic(0.98), every=10)]),
}


def recipe_of(name: str, row: Row, seed: int, options: argparse.Namespace) -> Any:
    """The recipe of one run."""
    network = NETWORKS[row.network]
    epochs = network.dense + network.after if row.scratch or not row.links else network.after
    stages = []
    if not row.scratch:
        dense = epochs if not row.links else network.dense
        stages.append({"name": "train", "epochs": dense, "optimizer": _adam(network.rate)})
    if row.links:
        rate = network.rate if row.scratch else network.after_rate
        stages.append(
            {
                "name": "transform",
                "epochs": epochs,
                "optimizer": _adam(rate),
                "transforms": row.links,
            }
        )
    folder = pathlib.Path(options.output, name.replace(" ", "_"), str(seed))
    return recipe.build(
        {
            "name": name.replace(" ", "_"),
            "model": row.model or network.model,
            "data": {"source": "nnopt_jax.zoo.data:mnist", "dir": options.data},
            "augment": {"source": "nnopt_jax.zoo.augment:shift", "pixels": 1},
            "batch_size": 200,
            "seed": seed,
            "log_every": 1000,
            "checkpoint_every": 10_000,
            "stages": stages,
            "output": str(folder),
        }
    )


def _adam(rate: float) -> dict[str, Any]:
    schedule = {"source": "optax:cosine_decay_schedule", "init_value": rate, "decay_steps": "100%"}
    return {"source": "optax:adam", "learning_rate": schedule}


def run(name: str, row: Row, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Runs one row, or reads what it gave when it ran."""
    made = recipe_of(name, row, seed, options)
    done = pathlib.Path(made.folder, "row.json")
    if done.exists():
        return json.loads(done.read_text())
    summary = recipe.run(made)
    found = {measure.name: measure for measure in summary.measures}
    result = {
        "dense": found["test error"].before,
        "error": found["test error"].after,
        "disk": found["on disk"].after,
        "memory": found["in memory"].after,
        "size": found["on disk"].before,
        "zeros": found["zeros"].after,
        "step": step_ratio(made) if row.links else 1.0,
    }
    done.write_text(json.dumps(result))
    return result


def step_ratio(made: Any) -> float:
    """How much longer a step takes under the transforms, in turns with the plain one."""
    setup = prepare(made)
    x, y = (jnp.asarray(part[: made.batch_size]) for part in setup.data.train)
    timed = {}
    for name, phase in {"plain": None, "transformed": setup.phases[-1]}.items():
        timed[name] = _stepper(setup, phase, x, y)
    return interleave(timed, base="plain", rounds=40)["transformed"].ratio


def _stepper(setup: Any, phase: Any, x: Any, y: Any) -> Any:
    """A function that makes ten steps; without a phase, plain ones."""
    last = setup.phases[-1]
    phase = phase or dataclasses.replace(last, links=())
    first = Carry(setup.model.params, setup.model.extra, (), None)
    carry = phase.begin(first, setup.key, measure(setup, phase, first))
    held = [jax.tree.map(lambda leaf: leaf.copy(), carry)]
    step = make_step(phase, setup.model, setup.loss, setup.augment, setup.key)

    def ten() -> Any:
        for number in range(10):
            held[0], loss = step(held[0], x, y, number)
        return loss

    return ten


def table(results: dict[str, list[dict[str, float]]]) -> Table:
    """One line a row, means over seeds."""
    out = Table("method", "dense %", "after %", "on disk", "in memory", "zeros %", "step")
    for name, runs in results.items():
        mean = {key: _mean(runs, key) for key in runs[0]}
        dense = mean["dense"] or _mean(results.get(f"dense {ROWS[name].network}", []) or
                                       results.get("dense", []), "error")  # fmt: skip
        out.add_row(
            name,
            "-" if dense is None else f"{dense:.2f}",
            f"{mean['error']:.2f}",
            *(f"{mean[key]:,.0f} ({mean['size'] / mean[key]:.1f}x)" for key in ("disk", "memory")),
            f"{mean['zeros']:.1f}",
            f"{mean['step']:.2f}",
        )
    return out


def _mean(runs: list[dict[str, float]], key: str) -> float | None:
    values = [run[key] for run in runs if run[key] is not None]
    return statistics.fmean(values) if values else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="parts of the names of rows; default: all")
    parser.add_argument("--data", help="folder of MNIST; default: NNOPT_DATA")
    parser.add_argument("--output", default="runs/rows")
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {}
    for name, row in ROWS.items():
        if options.names and not any(part in name for part in options.names):
            continue
        results[name] = [run(name, row, seed, options) for seed in range(row.seeds)]
        print(name, json.dumps(results[name]), flush=True)
    Console(width=120).print(table(results))


if __name__ == "__main__":
    main()
