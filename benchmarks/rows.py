"""Every row of the table of methods in docs/results.md, measured once on full MNIST.

    nnopt data mnist
    python benchmarks/rows.py                       # all rows: some hours on two cores
    python benchmarks/rows.py pruning.rigl          # those whose name holds one of these words
    python benchmarks/rows.py --done --write        # those that are finished, into docs/results.md

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
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from interleave import interleave

from nnopt_jax import recipe
from nnopt_jax.recipe import prepare
from nnopt_jax.recipe.recipe_plan import Carry
from nnopt_jax.recipe.runner import make_step, statistics_of

ROOT = pathlib.Path(__file__).parents[1]
KERNELS = "**/kernel"
ARXIV = "https://arxiv.org/abs/"
PAPERS = {
    "compression.codebook": ("Han 2016", "1510.00149"),
    "compression.dkm": ("Cho 2022", "2108.12659"),
    "compression.tie": ("Press 2017", "1608.05859"),
    "compression.low_rank": ("Zhang 2016", "1505.06798"),
    "compression.pca": ("Pearson 1901", "https://doi.org/10.1080/14786440109462720"),
    "compression.johnson_lindenstrauss": (
        "Achlioptas 2003",
        "https://doi.org/10.1016/S0022-0000(03)00025-4",
    ),
    "compression.sparse": ("Mishra 2021", "2104.08378"),
    "quantization.uniform": ("Jacob 2018", "1712.05877"),
    "quantization.dynamic": ("Yao 2022", "2206.01861"),
    "quantization.ema_range": ("Jacob 2018", "1712.05877"),
    "quantization.binary_connect": ("Courbariaux 2015", "1511.00363"),
    "quantization.xnor": ("Rastegari 2016", "1603.05279"),
    "quantization.twn": ("Li 2016", "1605.04711"),
    "quantization.ttq": ("Zhu 2017", "1612.01064"),
    "quantization.lsq": ("Esser 2020", "1902.08153"),
    "quantization.lsq_activation": ("Esser 2020", "1902.08153"),
    "quantization.pact": ("Choi 2018", "1805.06085"),
    "quantization.grouped": (
        "GGUF Q4_0",
        "https://github.com/ggml-org/ggml/blob/master/docs/gguf.md",
    ),
    "quantization.nf4": ("Dettmers 2023", "2305.14314"),
    "quantization.fp4": ("Dettmers 2023", "2305.14314"),
    "quantization.mxfp4": ("Rouhani 2023", "2310.10537"),
    "pruning.proximal": ("Yang 2020", "1908.09979"),
    "pruning.soft_threshold": ("Donoho 1995", "https://doi.org/10.1109/18.382009"),
    "pruning.learned_threshold": ("Kusupati 2020", "2002.03231"),
    "pruning.magnitude": ("Zhu 2017", "1710.01878"),
    "pruning.taylor": ("Molchanov 2019", "1906.10771"),
    "pruning.movement": ("Sanh 2020", "2005.07683"),
    "pruning.fisher": ("Theis 2018", "1801.05787"),
    "pruning.snip": ("Lee 2019", "1810.02340"),
    "pruning.grasp": ("Wang 2020", "2002.07376"),
    "pruning.rewind": ("Renda 2020", "2003.02389"),
    "pruning.random_mask": ("Liu 2022", "2202.02643"),
    "pruning.sparse_evolution": ("Mocanu 2018", "1707.04780"),
    "pruning.rigl": ("Evci 2020", "1911.11134"),
}


class Network(NamedTuple):
    """How a network is trained.

    Args:
        model: as a recipe names it.
        dense: epochs before the transforms.
        after: epochs under them.
        rate: learning rate of Adam at the start, falling to 0 by a cosine.
        after_rate: the same under the transforms.
    """

    model: Any
    dense: int
    after: int
    rate: float
    after_rate: float


NETWORKS = {
    "lenet_300_100": Network("nnopt_jax.zoo.lenet:lenet_300_100", 10, 10, 2e-3, 1e-3),
    "lenet5": Network("nnopt_jax.zoo.lenet:lenet5", 6, 6, 2e-3, 1e-3),
    "mlp": Network("nnopt_jax.zoo.perceptrons:mlp", 10, 40, 2e-3, 3e-3),
    "mlp 256": Network(
        {"source": "nnopt_jax.zoo.perceptrons:mlp", "width": 256}, 10, 10, 2e-3, 1e-3
    ),
}


class Row(NamedTuple):
    """One line of the table.

    Args:
        links: the transforms, as a recipe names them.
        network: a key of `NETWORKS`.
        scratch: whether the transforms are there from the first step, with all epochs theirs.
        seeds: how many runs are averaged.
        after: epochs under the transforms, where not those of the network.
        rate: learning rate under the transforms, where not that of the network: a number that
            falls by a cosine, or a schedule as a recipe names it.
        what: bits or sparsity, for the table.
        augment: as a recipe names it, where shifts of a pixel are not enough.
        model: makes another model than that of the network, of the same size.
        recipe: the recipe of the method on 5,000 digits; default: called as the method is.
    """

    links: list[dict[str, Any]]
    network: str = "lenet_300_100"
    scratch: bool = False
    seeds: int = 1
    after: int | None = None
    rate: Any = None
    what: str = ""
    augment: Any = None
    model: Callable[[argparse.Namespace], dict[str, Any]] | None = None
    recipe: str | None = None


def link(method: str, **settings: Any) -> dict[str, Any]:
    """One transform on all kernels."""
    return {method: {"where": KERNELS, **settings}}


def cubic(sparsity: float) -> dict[str, Any]:
    """From nothing to a sparsity in the first 60 % of the steps."""
    return {"source": "nnopt_jax.pruning:cubic", "sparsity": sparsity, "steps": "60%"}


def falling(value: float) -> dict[str, Any]:
    """Down to 0 in the first 60 % of the steps."""
    schedule = {"source": "optax:linear_schedule", "init_value": value, "end_value": 0.0}
    return {**schedule, "transition_steps": "60%"}


def courses(count: int, value: float) -> dict[str, Any]:
    """A cosine for each of some equal parts of the steps."""
    course = {"init_value": value, "peak_value": value, "warmup_steps": 0, "decay_steps": "20%"}
    return {"source": "optax:sgdr_schedule", "cosine_kwargs": [course] * count}


def low_rank(layer: str, rank: int) -> dict[str, Any]:
    """Factors of one layer."""
    return {"compression.low_rank": {"where": f"{layer}/kernel", "rank": rank}}


def blocks(method: str, *sizes: int, **settings: Any) -> list[dict[str, Any]]:
    """Blocks that divide the inputs of each layer."""
    return [
        {method: {"where": f"fc{i}/kernel", "group": size, **settings}}
        for i, size in enumerate(sizes, 1)
    ]


def projected(**settings: Any) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """A model on a projection of its inputs."""
    source = {"source": "nnopt_jax.zoo.perceptrons:projected_mlp", **settings}
    mnist = "nnopt_jax.zoo.data:mnist"
    return lambda options: {**source, "data": {"source": mnist, "dir": options.data}}


def rounded(activations: str, bits: int) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """LeNet-300-100 with rounded activations."""
    source = "nnopt_jax.zoo.perceptrons:quantized_mlp"
    return lambda options: {"source": source, "activations": activations, "bits": bits}


def prune(method: str, sparsity: float, **settings: Any) -> dict[str, Any]:
    """Pruning of all kernels by a cubic schedule."""
    return link(method, **{"sparsity": cubic(sparsity), "every": 10, **settings})


TABLE: dict[str, dict[str, Row]] = {
    "to compare with": {
        "dense": Row([]),
        "dense lenet5": Row([], "lenet5"),
        "dense mlp": Row([], "mlp", after=20),
        "dense mlp 256": Row([], "mlp 256"),
    },
    "compression: weight sharing": {
        "compression.codebook": Row(
            [link("compression.codebook", clusters=16, learned=True)], what="16 values a leaf"
        ),
        "compression.codebook tree": Row(
            [link("compression.codebook", clusters=16, learned=True, scope="tree")],
            what="16 values for all leaves",
            recipe="codebook_tree",
        ),
        "compression.dkm": Row([link("compression.dkm", clusters=8)], what="8 values a leaf"),
        "compression.tie": Row(
            [{"compression.tie": {"pairs": {"fc3/kernel": "fc2/kernel"}}}],
            "mlp 256",
            scratch=True,
            what="two layers of four",
        ),
    },
    "compression: feature mapping": {
        "compression.low_rank": Row(
            [low_rank("fc1", 24), low_rank("fc2", 24)], what="rank 24 of 300 and 100"
        ),
        "compression.pca": Row(
            [link("quantization.uniform", bits=8, granularity="channel", every=10)],
            model=projected(components=40),
            what="40 components, 8 bits",
            recipe="projection",
        ),
        "compression.johnson_lindenstrauss": Row(
            [
                link("quantization.uniform", bits=8, granularity="channel", every=10),
                {"compression.sparse": {"where": "projection/matrix"}},
            ],
            model=projected(components=100, kind="sparse", learned=False),
            what="100 random features, 8 bits",
        ),
    },
    "compression: sparse representation": {
        "compression.sparse": Row(
            [link("pruning.magnitude", pattern="2:4"), link("compression.sparse", format="2:4")],
            what="2:4",
        ),
    },
    "quantization: integer": {
        "quantization.uniform": Row(
            [link("quantization.uniform", bits=8, granularity="channel", every=10)], what="8 bits"
        ),
        "quantization.dynamic": Row(
            [link("quantization.uniform", bits=8, granularity="channel", every=10)],
            model=rounded("dynamic", 8),
            what="8 bits, activations too",
        ),
        "quantization.ema_range": Row(
            [link("quantization.uniform", bits=8, granularity="channel", every=10)],
            model=rounded("ema", 8),
            what="8 bits, activations too",
        ),
    },
    "quantization: binary": {
        "quantization.binary_connect": Row(
            [link("quantization.binary_connect", scale="glorot")],
            "mlp",
            scratch=True,
            what="1 bit",
        ),
        "quantization.xnor": Row(
            [link("quantization.xnor")], "mlp 256", scratch=True, what="1 bit"
        ),
        "quantization.twn": Row([link("quantization.twn")], "lenet5", what="ternary"),
        "quantization.ttq": Row([link("quantization.ttq")], "lenet5", what="ternary"),
    },
    "quantization: sub-integer": {
        "quantization.lsq": Row([link("quantization.lsq", bits=4)], "lenet5", what="4 bits"),
        "quantization.lsq 2": Row([link("quantization.lsq", bits=2)], "lenet5", what="2 bits"),
        "quantization.lsq_activation": Row(
            [link("quantization.lsq", bits=4)],
            model=rounded("lsq", 4),
            what="4 bits, activations too",
        ),
        "quantization.pact": Row(
            [link("quantization.lsq", bits=4)],
            model=rounded("pact", 4),
            what="4 bits, activations too",
        ),
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
    },
    "pruning: by sparsity": {
        "pruning.proximal": Row(
            [prune("pruning.proximal", 0.95, allocation="global")], what="95 %, L1"
        ),
        "pruning.proximal 98": Row(
            [prune("pruning.proximal", 0.98, allocation="global")],
            after=60,
            rate=2e-3,
            augment="nnopt_jax.zoo.augment:affine",
            what="98 %, L1, one threshold",
        ),
        "pruning.proximal hoyer": Row(
            [prune("pruning.proximal", 0.95, penalty="hoyer")], what="95 %, Hoyer", recipe="hoyer"
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
            recipe="group_lasso",
        ),
        "pruning.soft_threshold": Row(
            [prune("pruning.soft_threshold", 0.95, allocation="global", mode="frozen")], what="95 %"
        ),
        "pruning.learned_threshold": Row(
            [link("pruning.learned_threshold", start=-8, decay=falling(3.2e-3))], what="learned"
        ),
    },
    "pruning: by importance": {
        "pruning.magnitude": Row([prune("pruning.magnitude", 0.95)], what="95 %"),
        "pruning.magnitude lamp": Row(
            [prune("pruning.magnitude", 0.95, allocation="lamp", every=50)],
            what="95 %, LAMP",
            recipe="magnitude_lamp",
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
            rate=courses(5, 2e-3),
            what="95 % in 4 rounds",
        ),
    },
    "pruning: at random": {
        "pruning.random_mask": Row(
            [link("pruning.random_mask", sparsity=0.95, allocation="erk")],
            scratch=True,
            seeds=5,
            what="95 %",
        ),
        "pruning.sparse_evolution": Row(
            [link("pruning.sparse_evolution", sparsity=0.95, every=100, end_step="75%")],
            scratch=True,
            what="95 %",
        ),
        "pruning.rigl": Row(
            [link("pruning.rigl", sparsity=0.95, every=100, end_step="75%")],
            scratch=True,
            seeds=5,
            what="95 %",
        ),
    },
}
ROWS = {name: row for rows in TABLE.values() for name, row in rows.items()}


def recipe_of(name: str, row: Row, seed: int, options: argparse.Namespace) -> Any:
    """The recipe of one run."""
    network = NETWORKS[row.network]
    epochs = row.after or network.after + network.dense * (row.scratch or not row.links)
    stages = []
    if not row.scratch:
        dense = epochs if not row.links else network.dense
        stages.append({"name": "train", "epochs": dense, "optimizer": _adam(network.rate)})
    if row.links:
        rate = row.rate or (network.rate if row.scratch else network.after_rate)
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
            "model": row.model(options) if row.model else network.model,
            "data": {"source": "nnopt_jax.zoo.data:mnist", "dir": options.data},
            "augment": row.augment or {"source": "nnopt_jax.zoo.augment:shift", "pixels": 1},
            "batch_size": 200,
            "seed": seed,
            "log_every": 1000,
            "checkpoint_every": 10_000,
            "stages": stages,
            "output": str(folder),
        }
    )


def _result(name: str, row: Row, seed: int, options: argparse.Namespace) -> pathlib.Path:
    """Where what a run gave is kept."""
    return pathlib.Path(recipe_of(name, row, seed, options).folder, "row.json")


def _adam(rate: float | dict[str, Any]) -> dict[str, Any]:
    cosine = {"source": "optax:cosine_decay_schedule", "init_value": rate, "decay_steps": "100%"}
    return {"source": "optax:adam", "learning_rate": rate if isinstance(rate, dict) else cosine}


def run(name: str, row: Row, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Runs one row, or reads what it gave when it ran."""
    done = _result(name, row, seed, options)
    if done.exists():
        return json.loads(done.read_text())
    made = recipe_of(name, row, seed, options)
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
    carry = phase.begin(first, setup.key, statistics_of(setup, phase, first))
    held = [jax.tree.map(lambda leaf: leaf.copy(), carry)]
    step = make_step(setup, phase)

    def ten() -> Any:
        for number in range(10):
            held[0], loss = step(held[0], x, y, number)
        return loss

    return ten


HEADER = (
    "method", "paper", "bits or sparsity", "error %", "on disk", "in memory", "step", "recipe"
)  # fmt: skip


def cells(name: str, runs: list[dict[str, float]], dense: float | None) -> tuple[str, ...]:
    """One line of the table: means over seeds, and what to compare them with."""
    mean = {key: _mean(runs, key) for key in runs[0]}
    row, method = ROWS[name], name.split()[0]
    paper, where = PAPERS.get(method, ("", ""))
    before = mean["dense"] if row.links and mean["dense"] is not None else dense
    sizes = (f"{mean['size'] / mean[key]:.1f}x" for key in ("disk", "memory"))
    on = "" if row.network == "lenet_300_100" else f", {row.network}"
    return (
        f"`{method}`" if paper else f"dense, {row.network}",
        f"[{paper}]({where if '//' in where else ARXIV + where})" if paper else "",
        row.what + on if paper else f"{mean['size']:,.0f} bytes",
        f"{mean['error']:.2f}" if before is None else f"{before:.2f} -> {mean['error']:.2f}",
        *sizes,
        f"{mean['step']:.2f}",
        _recipe(name, row),
    )


def _recipe(name: str, row: Row) -> str:
    """Where the method's own recipe lies, if this row has one."""
    mission, _, method = name.partition(".")
    path = f"configs/{mission}/{row.recipe or method}.yaml"
    return f"`nnopt run {path}`" if (ROOT / path).exists() else ""


def markdown(results: dict[str, list[dict[str, float]]]) -> str:
    """The table of docs/results.md."""
    found = [HEADER, ("---",) * len(HEADER)]
    for title, rows in TABLE.items():
        there = [name for name in rows if name in results]
        if there:
            found.append((f"**{title}**", *[""] * (len(HEADER) - 1)))
        for name in there:
            network = ROWS[name].network
            same = "dense" if network == "lenet_300_100" else f"dense {network}"
            dense = _mean(results.get(same, []), "error") if ROWS[name].links else None
            found.append(cells(name, results[name], dense))
    return "\n".join(f"| {' | '.join(line)} |" for line in found)


def write(table: str) -> None:
    """Put the table into docs/results.md."""
    page = ROOT / "docs" / "results.md"
    before, mark, rest = page.read_text().partition("<!-- benchmarks/rows.py -->\n")
    assert mark, "docs/results.md has no place for the table"
    page.write_text(f"{before}{mark}{table}\n{rest[rest.index(chr(10) * 2) + 1 :]}")


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
    parser.add_argument("--done", action="store_true", help="only rows that are finished")
    parser.add_argument("--write", action="store_true", help="put the table into docs/results.md")
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {}
    for name, row in ROWS.items():
        if options.names and not any(part in name for part in options.names):
            continue
        if options.done and not all(
            _result(name, row, seed, options).exists() for seed in range(row.seeds)
        ):
            continue
        results[name] = [run(name, row, seed, options) for seed in range(row.seeds)]
        print(name, json.dumps(results[name]), flush=True)
    table = markdown(results)
    print(table)
    if options.write:
        write(table)


if __name__ == "__main__":
    main()
