"""What meshes of eight devices give: gradients of one device, shares of its bytes, few messages.

    python benchmarks/meshes.py [--only dp8,tp4] [--tables 1,2,3]

The devices are simulated by the processor, so nothing here is of speed. Three tables, in Markdown:

1. A transformer of four blocks on each mesh, pipelines with embedding and head outside of the
   stages. `error`: the greatest difference of a gradient's entry to that of one device, relative to
   the greatest entry of its leaf. `bytes`: what device 0 holds of parameters and Adam's moments, of
   what one device alone would. `of ideal`: the same over the leaves that are split at all, of their
   bytes divided by the devices over which the mesh splits parameters. Then collectives: found in
   the compiled step, and counted by hand (`by_hand`). Leaves that stay whole, or are
   split along one axis of the mesh where there are two, are listed below.
2. The error of other networks.
3. Bytes gathered for one matrix in float32, in eight bits and in four.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

import nnopt_jax as nnopt
from nnopt_jax import parallel
from nnopt_jax.zoo import lenet, losses, perceptrons
from nnopt_jax.zoo.transformer import Transformer

MESHES: dict[str, dict[str, int]] = {
    "dp8": {"data": 8},
    "fsdp8": {"fsdp": 8},
    "tp4": {"model": 4},
    "dp2 x tp4": {"data": 2, "model": 4},
    "dp2 x fsdp4": {"data": 2, "fsdp": 4},
    "dp2 x fsdp2 x tp2": {"data": 2, "fsdp": 2, "model": 2},
    "dp2 x stage4": {"data": 2, "stage": 4},
    "dp2 x stage2 x tp2": {"data": 2, "stage": 2, "model": 2},
}
MODEL = Transformer(
    inputs=64, classes=64, width=32, heads=4, hidden=64, layers=4, length=16, causal=True
)
ROWS, MICROBATCHES = 16, 4
BLOCK = [
    ("attention/out/kernel", ("model",)),
    ("attention/*/kernel", (None, "model")),
    ("up/kernel", (None, "model")),
    ("up/bias", ("model",)),
    ("down/kernel", ("model",)),
]
ENDS = [("embed/kernel", ("model",)), ("head/kernel", (None, "model"))]
PAIRS: dict[str, list[tuple[str, tuple[str | None, ...]]]] = {
    "lenet_300_100": [("fc1/kernel", (None, "model")), ("fc1/bias", ("model",)),
                      ("fc2/kernel", ("model",))],
    "lenet5": [("fc1/kernel", (None, "model")), ("fc1/bias", ("model",)),
               ("fc2/kernel", ("model",))],
    "mlp, batch norm": [("fc1/kernel", (None, "model")), ("norm1/*", ("model",)),
                        ("fc2/kernel", ("model",))],
}  # fmt: skip
"""Columns of one layer, rows of the next."""


class Case(NamedTuple):
    """A network on a mesh: its plan, its loss there, and the same on one device."""

    plan: parallel.Shards
    params: Any
    loss: Callable[..., Any]
    batch: Any
    wanted: Any


def by_hand(axes: Mapping[str, int], plan: parallel.Shards) -> dict[str, str]:
    """Collectives of one step as the papers count them, for the transformer here.

    Megatron-LM (arXiv:1909.08053, section 3): a block sums the outputs of `out` and of `down`
    forward, the slopes at the inputs of query, key, value and of `up` backward: 4. Outside of the
    blocks: rows of the embedding, 1 forward; the head's logits lie split by classes, so the loss
    takes their maximum, the sum of their exponentials and the logit of the label, 3 forward, or 2
    where the last two share a message, and the slope at the head's input 1 backward.

    Data parallelism sums the gradients of all leaves and the loss; a compiler that combines
    messages makes one of them, one that does not as many as there are leaves, and one more.
    Leaves of another split (along `model` or not) cannot go into one message with each other where
    they are summed over different groups.

    ZeRO-3 (arXiv:1910.02054, section 7): each split array is gathered where it is used, and once
    more for the backward pass if that needs it, so once or twice. Its gradient is summed into
    shares: a reduce-scatter, or an all-reduce of which a device keeps its part.

    GPipe (arXiv:1811.06965): each tick hands an activation on, forward, and a slope back; a loop
    counts once, so 2 permutations. What the last stage made goes to all, 1 sum; backward the slopes
    of what went in are summed, 1.
    """
    tensor, piped = (axes.get(name, 1) > 1 for name in ("model", "stage"))
    rows = axes.get("data", 1) * axes.get("fsdp", 1)
    fully = [row for row in plan.rows if plan.fsdp in row.reason.split(", ")]
    count: dict[str, tuple[int, int]] = {}

    def add(kind: str, least: int, most: int) -> None:
        before = count.get(kind, (0, 0))
        count[kind] = (before[0] + least, before[1] + most)

    if tensor:
        blocks = 1 if piped else MODEL.layers  # blocks of a stage are a loop
        again = 2 * blocks if piped else 0  # remat: the forward sums once more
        add("all-reduce", 4 * blocks + 4, 4 * blocks + 5 + again)
    if rows > 1:
        add("all-reduce", 1, len(plan.rows) + 1)
    if fully:
        add("all-gather", len(fully), 2 * len(fully))
    if piped:
        add("collective-permute", 2, 2)
        add("all-reduce", 2, 2)
    return {
        kind: str(least) if least == most else f"{least} to {most}"
        for kind, (least, most) in sorted(count.items())
    }


def cross_entropy(logits: Any, batch: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


def plain(params: Any, batch: Any) -> Any:
    return cross_entropy(MODEL(params, batch["x"]), batch)


@functools.cache
def alone() -> tuple[Any, Any, Any]:
    """Parameters of the transformer, a batch, and its gradient on one device."""
    params = jax.jit(MODEL.init)(jax.random.key(0))
    x = jax.random.randint(jax.random.key(1), (ROWS, MODEL.length), 0, MODEL.inputs)
    batch = {"x": x, "y": jnp.roll(x, -1, 1)}
    return params, batch, jax.jit(jax.grad(plain))(params, batch)


def transformer(axes: Mapping[str, int]) -> Case:
    """The transformer, in a pipeline where the mesh has stages."""
    mesh, tensor = on(axes), "model" in axes
    params, batch, wanted = alone()
    if "stage" not in axes:
        rules = [(f"**/{where}", spec) for where, spec in BLOCK] + ENDS if tensor else []
        return Case(parallel.specs(params, mesh, rules, least=0), params, plain, batch, wanted)

    through = parallel.pipeline(MODEL.block, mesh, microbatches=MICROBATCHES)

    def piped(params: Any, batch: Any) -> Any:
        hidden = through(params["stages"], MODEL.embed(params["outer"], batch["x"]))
        return cross_entropy(MODEL.head(params["outer"], hidden), batch)

    rules = [(f"stages/{where}", (None, "stage", None, *spec)) for where, spec in BLOCK]
    rules += [(f"outer/{where}", spec) for where, spec in ENDS]
    rules = [*(rules if tensor else []), ("stages/**", (None, "stage"))]
    params, wanted = staged(params, axes["stage"]), staged(wanted, axes["stage"])
    plan = parallel.specs(params, mesh, rules, fsdp="stage", least=0)
    return Case(plan, params, piped, batch, wanted)


def staged(params: Any, stages: int) -> Any:
    """Parameters of the transformer as the pipeline takes them."""
    outer = dict(params)
    blocks = [outer.pop(f"block_{i}") for i in range(MODEL.layers)]
    return {"outer": outer, "stages": parallel.stack_stages(blocks, stages=stages)}


def other(name: str, axes: Mapping[str, int]) -> Case:
    """A smaller network, on random images."""
    models = {
        "lenet_300_100": lenet.lenet_300_100(),
        "lenet5": lenet.lenet5(),
        "mlp, batch norm": perceptrons.mlp(width=64, layers=2),
    }
    model = models[name]
    images = jax.random.normal(jax.random.key(1), (32, 28, 28, 1))
    batch = {"x": images, "y": jax.random.randint(jax.random.key(2), (32,), 0, 10)}
    variables = jax.jit(model.init)(jax.random.key(0), images)
    means = {key: value for key, value in variables.items() if key != "params"}

    def loss(params: Any, batch: Any) -> Any:
        all_of_it = {"params": params} | means
        if not means:
            return losses.cross_entropy(model.apply(all_of_it, batch["x"]), batch["y"])
        logits, _ = model.apply(all_of_it, batch["x"], train=True, mutable=["batch_stats"])
        return losses.cross_entropy(logits, batch["y"])

    params = variables["params"]
    rules = PAIRS[name] if "model" in axes else []
    plan = parallel.specs(params, on(axes), rules, least=0)
    return Case(plan, params, loss, batch, jax.jit(jax.grad(loss))(params, batch))


def on(axes: Mapping[str, int]) -> Any:
    return parallel.mesh(devices=jax.devices()[: math.prod(axes.values())], **axes)


class Ran(NamedTuple):
    """One step."""

    error: float
    state: Any
    compiled: Any


def ran(case: Case) -> Ran:
    """Compiles a step and makes it."""
    optimizer = optax.chain(optax.trace(decay=0.0), optax.adamw(1e-3))  # keeps the gradient, too
    run = parallel.train_step(case.loss, optimizer, plan=case.plan)
    state = run.init(case.params)
    compiled = run.lower(state, case.batch).compile()
    state, _ = jax.block_until_ready(compiled(state, case.batch, (), None))
    found = state.opt_state[0].trace.params
    error = max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(case.wanted), strict=True)
    )
    return Ran(error, state, compiled)


class Held(NamedTuple):
    """Bytes of parameters and moments."""

    share: float
    of_ideal: float
    whole: list[str]
    in_part: list[str]
    leaves: int


def held(state: Any, axes: Mapping[str, int]) -> Held:
    """Reads from the arrays themselves what device 0 holds."""
    ways = math.prod(size for name, size in axes.items() if name != "data")
    moments = state.opt_state[1][0]
    rows = []
    for part, tree in enumerate((state.params, moments.mu.params, moments.nu.params)):
        for path, x in nnopt.tree.flatten(tree).items():
            rows.append((part, path, x.nbytes, x.addressable_shards[0].data.nbytes))
    split = [row for row in rows if row[3] < row[2]]
    ideal = sum(row[2] for row in split) / ways
    return Held(
        sum(row[3] for row in rows) / sum(row[2] for row in rows),
        sum(row[3] for row in split) / ideal if split else 1.0,
        [path for part, path, whole, mine in rows if part == 0 and mine == whole],
        [path for part, path, whole, mine in rows if part == 0 and whole / ways < mine < whole],
        len(jax.tree.leaves(state.params)),
    )


def first_table(names: list[str], console: Console) -> None:
    """The transformer on each mesh."""
    out = Table("mesh", "error", "bytes", "of ideal", "collectives", "by hand", box=MARKDOWN)
    whole, in_part = {}, {}
    for name in names:
        axes = MESHES[name]
        case = transformer(axes)
        one = ran(case)
        found = parallel.collectives(one.compiled)
        bytes_ = held(one.state, axes)
        in_part[name] = _merged(bytes_.in_part)
        all_of_them = len(bytes_.whole) == bytes_.leaves
        whole[name] = ["all"] if all_of_them else _merged(bytes_.whole)
        hand = by_hand(axes, case.plan)
        out.add_row(name, f"{one.error:.1e}", f"{bytes_.share:.3f}", f"{bytes_.of_ideal:.3f}",
                    _told({kind: sent.count for kind, sent in found.items()}), _told(hand),
        )  # fmt: skip
    console.print(out)
    for name in names:
        console.print(f"whole on {name}: {', '.join(whole[name]) or 'none'}", soft_wrap=True)
        if in_part[name]:
            console.print(f"by one axis alone: {', '.join(in_part[name])}", soft_wrap=True)


def _told(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"


def _merged(paths: list[str]) -> list[str]:
    """Leaves of all blocks by one name."""
    names = (f"block_*/{path.split('/', 1)[1]}" if path.startswith("block_") else path
             for path in paths)  # fmt: skip
    return list(dict.fromkeys(names))


def second_table(names: list[str], console: Console) -> None:
    """Other networks on each mesh without stages."""
    names = [name for name in names if "stage" not in MESHES[name]]
    out = Table("network", *names, box=MARKDOWN)
    for network in PAIRS:
        errors = (ran(other(network, MESHES[name])).error for name in names)
        out.add_row(network, *(f"{one:.1e}" for one in errors))
    console.print(out)


def third_table(console: Console) -> None:
    """One matrix, gathered from eight devices."""
    params = {"kernel": jax.random.normal(jax.random.key(0), (512, 512))}
    kinds = {"float32": None, "int8, a scale a column": nnopt.quantization.uniform(8),
             "int4, a scale a group of 32": nnopt.quantization.grouped()}  # fmt: skip
    out, dense = Table("matrix 512 x 512", "bytes gathered", "ratio", box=MARKDOWN), 0
    for name, tx in kinds.items():
        tree = params if tx is None else tx.pack(params, tx.init(params))
        plan = parallel.specs(tree, on({"fsdp": 8}), least=0)
        forward = parallel.predict(lambda p, x: x @ p["kernel"], plan)
        lowered = forward.lower(parallel.shard(tree, plan), jnp.ones((8, 512)))
        found = parallel.collectives(lowered.compile())["all-gather"].bytes
        dense = dense or found
        out.add_row(name, f"{found:,}", f"{found / dense:.3f}")
    console.print(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(MESHES), help="meshes, by name, with commas")
    parser.add_argument("--tables", default="1,2,3", help="which tables")
    options = parser.parse_args()
    names, console = options.only.split(","), Console(width=200)
    console.print(f"jax {jax.__version__}, {len(jax.devices())} simulated devices")
    if "1" in options.tables:
        first_table(names, console)
    if "2" in options.tables:
        second_table(names, console)
    if "3" in options.tables:
        third_table(console)


if __name__ == "__main__":
    main()
