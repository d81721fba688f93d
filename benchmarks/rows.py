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
        after: epochs under the transforms, where not those of the network.
        what: bits or sparsity, for the table.
    """

    links: list[dict[str, Any]]
    network: str = "lenet_300_100"
    scratch: bool = False
    seeds: int = 1
    after: int | None = None
    what: str = ""


def link(method: str, **settings: Any) -> dict[str, Any]:
    """One transform on all kernels."""
    return {method: {"where": KERNELS, **settings}}


def cubic(sparsity: float) -> dict[str, Any]:
    """From nothing to a sparsity in the first 60 % of the steps."""
    return {"source": "nnopt_jax.pruning:cubic", "sparsity": sparsity, "steps": "60%"}


def low_rank(layer: str, rank: int) -> dict[str, Any]:
    """Factors of one layer."""
    return {"compression.low_rank": {"where": f"{layer}/kernel", "rank": rank}}


def blocks(method: str, *sizes: int, **settings: Any) -> list[dict[str, Any]]:
    """Blocks that divide the inputs of each layer."""
    return [
        {method: {"where": f"fc{i}/kernel", "granularity": size, **settings}}
        for i, size in enumerate(sizes, 1)
    ]


def prune(method: str, sparsity: float, **settings: Any) -> dict[str, Any]:
    """Pruning of all kernels by a cubic schedule."""
    return link(method, **{"sparsity": cubic(sparsity), "every": 10, **settings})


ROWS: dict[str, Row] = {
    # What the others are compared with.
    "dense": Row([]),
    "dense lenet5": Row([], "lenet5"),
    "dense mlp": Row([], "mlp"),
    # Compression: weight sharing, feature mapping, sparse representation.
    "compression.codebook": Row(
        [link("compression.codebook", clusters=16, learned=True)], what="16 values a leaf"
    ),
    "compression.codebook tree": Row(
        [link("compression.codebook", clusters=16, learned=True, scope="tree")],
        what="16 values for all leaves",
    ),
    "compression.dkm": Row([link("compression.dkm", clusters=8)], what="8 values a leaf"),
    "compression.low_rank": Row(
        [low_rank("fc1", 24), low_rank("fc2", 24)], what="rank 24 of 300 and 100"
    ),
    "compression.sparse": Row(
        [link("pruning.magnitude", pattern="2:4"), link("compression.sparse", format="2:4")],
        what="2:4",
    ),
    # Quantization: integer, binary, sub-integer.
    "quantization.uniform": Row(
        [link("quantization.uniform", bits=8, granularity="channel", every=10)], what="8 bits"
    ),
    "quantization.binary_connect": Row(
        [link("quantization.binary_connect", scale="glorot")],
        "mlp",
        scratch=True,
        what="1 bit",
    ),
    "quantization.binary_connect stochastic": Row(
        [link("quantization.binary_connect", scale="glorot", stochastic=True)],
        "mlp",
        scratch=True,
        what="1 bit, drawn",
    ),
    "quantization.xnor": Row([link("quantization.xnor")], "mlp", scratch=True, what="1 bit"),
    "quantization.twn": Row([link("quantization.twn")], "lenet5", what="ternary"),
    "quantization.ttq": Row([link("quantization.ttq")], "lenet5", what="ternary"),
    "quantization.lsq": Row([link("quantization.lsq", bits=4)], "lenet5", what="4 bits"),
    "quantization.lsq 2": Row([link("quantization.lsq", bits=2)], "lenet5", what="2 bits"),
    "quantization.grouped": Row(
        blocks("quantization.grouped", 28, 30, 25), what="4 bits, blocks of about 28"
    ),
    "quantization.nf4": Row(
        blocks("quantization.nf4", 56, 60, 50, double=True), what="4 bits, blocks of about 56"
    ),
    "quantization.fp4": Row(
        blocks("quantization.fp4", 56, 60, 50, scale_dtype="float16"),
        what="4 bits, blocks of about 56",
    ),
    "quantization.mxfp4": Row(
        blocks("quantization.mxfp4", 28, 30, 25), what="4 bits, blocks of about 28"
    ),
    # Pruning: by sparsity, by importance, at random.
    "pruning.proximal": Row([prune("pruning.proximal", 0.95)], what="95 %, L1"),
    "pruning.proximal hoyer": Row(
        [prune("pruning.proximal", 0.95, penalty="hoyer")], what="95 %, Hoyer"
    ),
    "pruning.proximal group_lasso": Row(
        [
            link(
                "pruning.proximal",
                sparsity=cubic(0.5),
                every=10,
                penalty="group_lasso",
                where="re:fc[12]/kernel",
            )
        ],
        what="50 % of the units",
    ),
    "pruning.soft_threshold": Row([prune("pruning.soft_threshold", 0.95)], what="95 %"),
    "pruning.learned_threshold": Row(
        [link("pruning.learned_threshold", start=-8, decay=1e-3)], what="learned"
    ),
    "pruning.magnitude": Row([prune("pruning.magnitude", 0.95)], what="95 %"),
    "pruning.magnitude 98": Row(
        [prune("pruning.magnitude", 0.98, allocation="global")],
        after=60,
        what="98 %, one threshold",
    ),
    "pruning.magnitude lamp": Row(
        [prune("pruning.magnitude", 0.95, allocation="lamp", every=50)], what="95 %, LAMP"
    ),
    "pruning.taylor": Row([prune("pruning.taylor", 0.95, allocation="global")], what="95 %"),
    "pruning.movement": Row([prune("pruning.movement", 0.95)], what="95 %"),
    "pruning.fisher": Row([prune("pruning.fisher", 0.95, allocation="global")], what="95 %"),
    "pruning.snip": Row([link("pruning.snip", sparsity=0.95)], scratch=True, what="95 %"),
    "pruning.grasp": Row([link("pruning.grasp", sparsity=0.95)], scratch=True, what="95 %"),
    "pruning.rewind": Row(
        [
            link(
                "pruning.magnitude",
                every="20%",
                sparsity={
                    "source": "nnopt_jax.pruning:iterative",
                    "sparsity": 0.95,
                    "rounds": 4,
                    "steps": "20%",
                },
            ),
            {"pruning.rewind": {"rounds": 4, "steps": "20%", "to": 200}},
        ],
        scratch=True,
        after=40,
        what="95 % in 4 rounds",
    ),
    "pruning.random_mask": Row(
        [link("pruning.random_mask", sparsity=0.95, allocation="erk")],
        scratch=True,
        seeds=5,
        what="95 %",
    ),
    "pruning.sparse_evolution": Row(
        [link("pruning.sparse_evolution", sparsity=0.95, every=100, end_step="75%")],
        scratch=True,
        seeds=5,
        what="95 %",
    ),
    "pruning.rigl": Row(
        [link("pruning.rigl", sparsity=0.95, every=100, end_step="75%")],
        scratch=True,
        seeds=5,
        what="95 %",
    ),
}


def recipe_of(name: str, row: Row, seed: int, options: argparse.Namespace) -> Any:
    """The recipe of one run."""
    network = NETWORKS[row.network]
    epochs = row.after or network.after + network.dense * (row.scratch or not row.links)
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
            "model": network.model,
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
    out = Table("method", "what", "dense %", "after %", "on disk", "in memory", "zeros %", "step")
    for name, runs in results.items():
        mean = {key: _mean(runs, key) for key in runs[0]}
        dense = mean["dense"] or _mean(results.get(f"dense {ROWS[name].network}", []) or
                                       results.get("dense", []), "error")  # fmt: skip
        out.add_row(
            name,
            ROWS[name].what,
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
