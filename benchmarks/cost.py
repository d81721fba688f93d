"""What networks of the zoo cost, dense and packed: counted, as XLA counts it, and timed.

    python benchmarks/cost.py [--network lenet5|transformer] [--leaves]

A line for each way to pack the kernels: FLOPs as `graph.cost` counts them and as the compiler does
of what it has compiled (padding aside, which it leaves out), the bytes of the leaves, those of
activations at contractions, and the milliseconds of a call, dense and packed in turns. Bytes, work
and time are three things: codes of eight bits are a quarter of the bytes and none of the FLOPs
less, and only the time says what a machine makes of it. `--leaves` prints the tables leaf by leaf.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
from interleave import interleave

import nnopt_jax as nnopt
from nnopt_jax.columns import aligned
from nnopt_jax.trace.cost_table import amount
from nnopt_jax.zoo.lenet import lenet5
from nnopt_jax.zoo.transformer import Transformer

KEY = jax.random.key(0)
KERNELS = "**/kernel"
WAYS: dict[str, nnopt.Transform] = {
    "int8": nnopt.quantization.uniform(8, where=KERNELS, granularity="channel"),
    "int8, inputs too": nnopt.chain(
        nnopt.quantization.uniform(8, where=KERNELS, granularity="channel"),
        nnopt.quantization.quantize_activations(where=KERNELS),
    ),
    "int4": nnopt.quantization.uniform(4, where=KERNELS, granularity="channel"),
    "16 shared values": nnopt.compression.codebook(16, where=KERNELS),
    "rank 8": nnopt.compression.low_rank(8, where=KERNELS),
    "90 % pruned": nnopt.pruning.magnitude(0.9, where=KERNELS),
}


def network(name: str) -> tuple[Callable[..., Any], Any, jax.Array]:
    """A function, its parameters and 32 images."""
    images = jax.random.normal(KEY, (32, 28, 28, 1))
    if name == "lenet5":
        model = lenet5()
        return model.apply, model.init(KEY, images), images
    model = Transformer(inputs=28, classes=10)
    return model, model.init(KEY), images


def show(name: str, leaves: bool) -> None:
    """Prints the table of a network."""
    apply, params, images = network(name)
    graph = nnopt.graph(apply, params, images)
    bound = {way: tx.bind(graph) for way, tx in WAYS.items()}
    forms = {"dense": params} | {
        way: tx.pack(params, tx.init(params, key=KEY)) for way, tx in bound.items()
    }
    costs = {way: graph.cost(form) for way, form in forms.items()}
    compiled = {
        way: jax.jit(nnopt.on_packed(apply)).lower(form, images).compile()
        for way, form in forms.items()
    }
    times = interleave(
        {way: lambda w=way: compiled[w](forms[w], images) for way in forms}, budget=10.0
    )
    lines = [(name, "FLOPs", "by XLA", "bytes", "activations", "ms", "of dense")]
    for way, cost in costs.items():
        xla, time = compiled[way].cost_analysis()["flops"], times[way]
        numbers = cost.flops, xla, cost.bytes, cost.bytes_read + cost.bytes_written
        ends = f"{1e3 * time.median:.2f}", f"{time.ratio:.2f}"
        lines.append((way, *map(amount, numbers), *ends))
    print("\n".join(aligned(lines, numbers=6)), flush=True)
    for way, cost in costs.items() if leaves else ():
        print(f"\n{way}\n{cost if way == 'dense' else costs['dense'].against(cost)}")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("lenet5", "transformer"), help="default: both")
    parser.add_argument("--leaves", action="store_true", help="also leaf by leaf")
    args = parser.parse_args()
    print(f"jax {jax.__version__}")
    for name in [args.network] if args.network else ["lenet5", "transformer"]:
        show(name, args.leaves)


if __name__ == "__main__":
    main()
