"""What the graph of a language model of 135 M parameters takes, and finds.

Usage: python benchmarks/graph.py

The shapes are those of SmolLM2-135M (30 layers of width 576, 9 heads that share 3 of keys and
values, 1,536 hidden units, 49,152 tokens, the embedding tied), 64 tokens. Nothing is computed:
times are seconds of the processor, the least of three runs, each on a graph of its own.
"""

from __future__ import annotations

import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

import nnopt_jax as nnopt
from nnopt_jax.trace.statistics.batch_reader import read_program
from nnopt_jax.trace.statistics.use_sites import float_leaves
from nnopt_jax.zoo.llama import Llama

MODEL = Llama(49152, 576, 30, 9, 3, 1536)
TOKENS = jax.ShapeDtypeStruct((1, 64), jnp.int32)


def apply(params, ids):
    tied = params | {"head": {"kernel": params["embed"].T}}
    return MODEL.apply(tied, ids)


def shapes():
    params = jax.eval_shape(MODEL.init, jax.random.key(0))
    return {name: leaf for name, leaf in params.items() if name != "head"}


def seconds(run, times: int = 3) -> float:
    """The least processor time of some runs."""
    found = []
    for _ in range(times):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


def gram_bytes(params) -> tuple[int, int]:
    """Bytes of the Gram matrices as they are stored, and with one for each leaf."""
    found = []

    def read(params, ids):
        leaves = {p: x for p, x in float_leaves(params).items() if x.ndim == 2 and p != "embed"}
        wanted = [nnopt.trace.input_gram()]
        found.append(read_program(lambda p, x: apply(p, x), params, ids, leaves, wanted))
        return jnp.zeros(())

    jax.eval_shape(read, params, TOKENS)
    stored = jax.eval_shape(found[-1].start)
    size = sum(x.size * x.dtype.itemsize for key, x in stored.items() if key[0] == "input_gram")
    apart = sum(
        4 * leaf.shape[0] ** 2 for leaf in jax.tree.leaves(params["layers"]) if leaf.ndim == 2
    )
    return size, apart


def main() -> None:
    params = shapes()
    graph = nnopt.graph(apply, params, TOKENS)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{size:,} parameters, {len(graph.traced.program.jaxpr.eqns):,} steps")
    rows = {
        "trace": lambda: nnopt.graph(apply, params, TOKENS),
        "trace and axes": lambda: nnopt.graph(apply, params, TOKENS).axes,
        "trace and coupled axes": lambda: nnopt.graph(apply, params, TOKENS).coupled,
        "trace and cost": lambda: nnopt.graph(apply, params, TOKENS).cost(),
    }
    for name, run in rows.items():
        print(f"{name}: {seconds(run):.2f} s")
    frozen = [f"{path}:{axis}" for path, axis in graph.coupled.frozen]
    print(f"{len(graph.coupled.dimensions)} dimensions; {len(frozen)} axes frozen")
    xla = jax.jit(apply).lower(params, TOKENS).cost_analysis()["flops"]
    flops = graph.cost().flops
    print(f"FLOPs {flops:,}, XLA {int(xla):,}: {100 * (flops / xla - 1):+.3f} %")
    stored, apart = gram_bytes(params)
    print(
        f"Gram matrices of all kernels: {stored / 1e6:.0f} MB; one for each: {apart / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
