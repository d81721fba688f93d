"""What a compiled training step of a stacked Llama asks of each device, beside hand-written steps.

    python benchmarks/gathers.py                  # eight devices, simulated by the processor
    python benchmarks/gathers.py --tpu            # the compiler of TPUs: pip install '.[tpu-aot]'

Nothing is run, so nothing here is of speed: the figures are those of the compiled program.

1. `temporaries` on one of eight devices, parameters split over all (`fsdp` 8): a step of
   `parallel.train_step`, and a step of the same mathematics written by hand, `jax.jit` with a
   `NamedSharding` for every array. Collectives are counted as often as their loops run.
2. Operations of a step with adapters on one device, over `x W + (x A) B` written by hand.
3. With `--tpu`, a model of 5.8 billion weights on 16 devices of TPU v5e, by the real compiler for a
   topology, without the devices.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import Any, NamedTuple

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# For --tpu: the compiler is not to ask a cloud which machine this is.
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-16"
os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

import nnopt_jax as nnopt
from nnopt_jax import parallel
from nnopt_jax.parallel.shard_specs import LEAST
from nnopt_jax.parallel.train_state import layout
from nnopt_jax.zoo.llama import Llama

SMALL = Llama(vocabulary=512, width=128, layers=4, heads=8, shared=4, hidden=384, stacked=True)
LARGE = Llama(
    vocabulary=32000, width=4096, layers=32, heads=32, shared=8, hidden=11008,
    stacked=True, remat=True, dtype=jnp.bfloat16,
)  # fmt: skip
"""The width of Llama 2 7B with eight heads of keys and values: 5.8 billion weights."""
KERNELS = "layers/*/kernel"
MEGABYTE, GIGABYTE = 1e6, 1e9


class Step(NamedTuple):
    """What the compiler says of a step."""

    name: str
    temporaries: int
    arguments: int
    operations: float
    collectives: dict[str, parallel.Traffic]

    @classmethod
    def of(cls, name: str, compiled: Any) -> Step:
        """Ask the compiler."""
        memory = compiled.memory_analysis()
        return cls(
            name,
            memory.temp_size_in_bytes,
            memory.argument_size_in_bytes,
            compiled.cost_analysis()["flops"],
            parallel.collectives(compiled, trips=True),
        )


def loss_of(model: Llama) -> Any:
    """The cross-entropy of the next token."""

    def loss(params: Any, ids: jax.Array) -> jax.Array:
        logits = model.apply(params, ids[:, :-1]).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()

    return loss


def shapes_of(model: Llama) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0))


def ours(
    name: str,
    model: Llama,
    mesh: Any,
    ids: Any,
    tx: Any = None,
    packing: Any = None,
    least: int = 0,
    **settings: Any,
) -> Step:
    """A step of the library, with a transform and over packed kernels if asked."""
    params = shapes_of(model)
    if tx is not None:
        graph = nnopt.graph(model.apply, params, jax.ShapeDtypeStruct((1, 8), jnp.int32))
        tx = tx.bind(graph)
        packing = packing and packing.bind(graph)
    if packing is not None:
        params = jax.eval_shape(lambda p: packing.pack(p, packing.init(p)), params)
    plan = parallel.specs(params, mesh, least=least)
    run = parallel.train_step(loss_of(model), optax.adamw(1e-3), tx, plan=plan, **settings)
    return Step.of(name, run.lower(run.abstract, ids).compile())


def by_hand(name: str, model: Llama, mesh: Any, ids: Any) -> Step:
    """The step that a user writes with `jax.jit` and shardings alone."""
    loss, optimizer = loss_of(model), optax.adamw(1e-3)
    plan = parallel.specs(shapes_of(model), mesh, least=0)
    own = layout(nnopt.chain(), optimizer, plan).shardings.opt_state
    moments = (own[0]._replace(mu=own[0].mu.params, nu=own[0].nu.params), *own[1:])

    def step(params: Any, opt_state: Any, ids: jax.Array) -> Any:
        value, slope = jax.value_and_grad(loss)(params, ids)
        slope = jax.lax.with_sharding_constraint(slope, plan.shardings)
        updates, opt_state = optimizer.update(slope, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    state = plan.shardings, moments
    compiled = jax.jit(
        step,
        in_shardings=(*state, NamedSharding(mesh, PartitionSpec("fsdp"))),
        out_shardings=(*state, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=(0, 1),
    )
    opt_state = jax.eval_shape(optimizer.init, plan.params)
    return Step.of(name, compiled.lower(plan.params, opt_state, ids).compile())


def simulated() -> list[tuple[Step, Step | None]]:
    """The steps on eight devices, each with one by hand if there is one."""
    mesh, ids = parallel.mesh(fsdp=8), jax.ShapeDtypeStruct((16, 33), jnp.int32)
    adapters = nnopt.transfer.lora(8, where=KERNELS)
    four = nnopt.quantization.grouped(where=KERNELS)
    found: list[tuple[Step, Step | None]] = []
    for layers in (4, 16):
        blocks = dataclasses.replace(SMALL, layers=layers, remat=True)
        plain = dataclasses.replace(blocks, remat=False)
        hand = by_hand("", blocks, mesh, ids)
        name = f"{layers} layers"
        found += [
            (ours(f"{name}, blocks recomputed", blocks, mesh, ids), hand),
            (ours(f"{name}, blocks recomputed, `remat=True`", blocks, mesh, ids, remat=True), hand),
            (ours(name, plain, mesh, ids), by_hand("", plain, mesh, ids)),
            (ours(f"{name}, `remat=True`", plain, mesh, ids, remat=True), None),
            (ours(f"{name}, adapters over 4 bits", blocks, mesh, ids, adapters, four), None),
        ]
        unrolled = dataclasses.replace(plain, stacked=False)
        found += [
            (ours(f"{name}, not stacked", unrolled, mesh, ids), by_hand("", unrolled, mesh, ids)),
            (ours(f"{name}, not stacked, `remat=True`", unrolled, mesh, ids, remat=True), None),
        ]
    return found


class Adapted(Llama):
    """Llama with adapters, written by hand."""

    def _dense(self, x: jax.Array, dense: Any) -> jax.Array:
        kernel = dense["kernel"]
        if isinstance(kernel, tuple):
            kernel, a, b = kernel
            return x @ kernel + (x @ a) @ b
        return x @ kernel


def adapters_by_hand(ids: Any) -> float:
    """Operations of the gradient of adapters of rank 8 on all kernels of the blocks."""
    model = Adapted(
        **{f.name: getattr(SMALL, f.name) for f in dataclasses.fields(SMALL)} | {"stacked": False}
    )
    params = shapes_of(model)

    def adapter(kernel: Any) -> Any:
        rows, columns = kernel.shape
        return tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in ((rows, 8), (8, columns)))

    learned = [{n: adapter(x["kernel"]) for n, x in layer.items() if "kernel" in x}
               for layer in params["layers"]]  # fmt: skip

    def loss(learned: Any, params: Any, ids: jax.Array) -> jax.Array:
        layers = [
            layer | {n: {"kernel": (layer[n]["kernel"], *ab)} for n, ab in own.items()}
            for layer, own in zip(params["layers"], learned, strict=True)
        ]
        return loss_of(model)(params | {"layers": layers}, ids)

    step = jax.jit(jax.value_and_grad(loss)).lower(learned, params, ids).compile()
    return step.cost_analysis()["flops"]


def operations() -> dict[str, float]:
    """Operations of steps with adapters on one device, over those by hand."""
    mesh = parallel.mesh(devices=jax.devices()[:1], fsdp=1)
    ids = jax.ShapeDtypeStruct((16, 33), jnp.int32)
    wanted = adapters_by_hand(ids)
    model, kernels = dataclasses.replace(SMALL, stacked=False), "re:layers/.*/kernel"
    bases = {
        "float32": None,
        "int8, a scale for each output": nnopt.quantization.uniform(
            8, where=kernels, granularity="channel"
        ),
        "int4, groups of 64": nnopt.quantization.uniform(4, where=kernels, group=64),
        "Q4_0": nnopt.quantization.grouped(where=kernels),
    }
    tx = nnopt.transfer.lora(8, where=kernels)
    return {
        name: ours(name, model, mesh, ids, tx, base).operations / wanted
        for name, base in bases.items()
    }


def on_tpu() -> list[Step]:
    """Steps of the large model, compiled for 16 devices of TPU v5e."""
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices
    mesh = parallel.mesh(devices=list(devices), fsdp=16)
    ids = jax.ShapeDtypeStruct((16, 2049), jnp.int32)
    adapters = nnopt.transfer.lora(16, where=KERNELS)
    four = nnopt.quantization.grouped(where=KERNELS)
    return [
        ours("all parameters, float32", LARGE, mesh, ids, least=LEAST),
        ours("adapters over 4 bits", LARGE, mesh, ids, adapters, four, LEAST),
    ]


def table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    found = Table(*head, title=title, box=MARKDOWN)
    for row in rows:
        found.add_row(*row)
    Console(width=200).print(found)


def written(step: Step) -> str:
    return ", ".join(
        f"{part.count} {kind} {part.bytes / MEGABYTE:.1f} MB"
        for kind, part in step.collectives.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tpu", action="store_true", help="compile for TPU v5e instead")
    if parser.parse_args().tpu:
        rows = [
            (step.name, *(f"{size / GIGABYTE:.2f}" for size in (step.temporaries, step.arguments)))
            for step in on_tpu()
        ]
        table("TPU v5e 4x4, fsdp 16", ("step", "temporaries, GB", "arguments, GB"), rows)
        return
    rows = []
    for step, hand in simulated():
        ratio = "" if hand is None else f"{step.temporaries / hand.temporaries:.3f}"
        size = f"{step.temporaries / MEGABYTE:.2f}"
        rows.append((step.name, size, ratio, written(step), "" if hand is None else written(hand)))
    head = ("step", "temporaries, MB", "over by hand", "collectives", "by hand")
    table("8 simulated devices, fsdp 8", head, rows)
    head = "adapters over", "operations over x W + (x A) B"
    table("one device", head, [(name, f"{ratio:.3f}") for name, ratio in operations().items()])


if __name__ == "__main__":
    main()
