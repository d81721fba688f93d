"""Half of the units of two networks, taken out: what falls, and what the error does.

`python benchmarks/structured.py` trains LeNet-5 on 5,000 digits, takes half of the units of each
layer out by their norm, trains what is left, and does the same with the network of 16.9 million
parameters for 32x32 images, on the same digits. FLOPs and bytes are counted (`graph.cost`), times
are of the compiled calls, in turns, medians of many. The test images are read at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from interleave import interleave

import nnopt_jax as nnopt
from nnopt_jax.zoo import convnet, data, lenet, losses

BATCH = 64


def batches(split: data.Split, epochs: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Whole batches, in another order in each epoch."""
    draws = np.random.default_rng(seed)
    for _ in range(epochs):
        order = draws.permutation(len(split))
        for start in range(0, len(split) - BATCH + 1, BATCH):
            part = order[start : start + BATCH]
            yield split.x[part], split.y[part]


def trained(
    apply: Callable[..., Any], params: Any, split: data.Split, epochs: int, rate: float
) -> Any:
    """Parameters after some epochs of Adam, the rate going down to zero."""
    steps = epochs * (len(split) // BATCH)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def step(params: Any, memory: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        slope = jax.grad(lambda p: losses.cross_entropy(apply(p, x), y))(params)
        updates, memory = optimizer.update(slope, memory, params)
        return optax.apply_updates(params, updates), memory

    memory = optimizer.init(params)
    for x, y in batches(split, epochs, seed=epochs):
        params, memory = step(params, memory, x, y)
    return params


def error(apply: Callable[..., Any], params: Any, split: data.Split) -> float:
    """In percent."""
    run = jax.jit(apply)
    wrong = [run(params, split.x[i : i + 250]).argmax(-1) for i in range(0, len(split), 250)]
    return 100 * float(np.mean(np.concatenate(wrong) != split.y))


def halved(name: str, model: Any, images: data.Dataset, epochs: int, more: int) -> None:
    """Prints the table of one network."""
    x = jnp.asarray(images.test.x[:BATCH])

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return model.apply({"params": params}, x)

    params = jax.jit(model.init)(jax.random.key(0), x[:1])["params"]
    params = trained(apply, params, images.train, epochs, 1e-3)
    graph = nnopt.graph(apply, params, x[:1])
    state = nnopt.pruning.structured(0.5).bind(graph).init(params)
    small = graph.shrink(params, nnopt.pruning.kept_units(state))
    tuned = trained(small.apply, small.params, images.train, more, 1e-3)
    before = nnopt.graph(apply, params, x).cost()
    after = nnopt.graph(small.apply, tuned, x).cost()
    calls = {"dense": jax.jit(apply), "half": jax.jit(small.apply)}
    times = interleave(
        {"dense": lambda: calls["dense"](params, x), "half": lambda: calls["half"](tuned, x)},
        rounds=60,
    )
    units = ", ".join(f"{each.name} {each.size}" for each in graph.coupled.dimensions)
    print(f"{name}, batch of {BATCH}: {units}")
    print(f"  FLOPs   {before.flops:15,} -> {after.flops:15,}  {before.flops / after.flops:.2f}x")
    print(f"  bytes   {before.bytes:15,} -> {after.bytes:15,}  {before.bytes / after.bytes:.2f}x")
    slow, fast = times["dense"], times["half"]
    print(
        f"  ms      {1e3 * slow.median:15.2f} -> {1e3 * fast.median:15.2f}  {1 / fast.ratio:.2f}x"
    )
    whole, cut = (
        error(a, p, images.test) for a, p in ((apply, params), (small.apply, small.params))
    )
    print(f"  error % {whole:15.2f} -> {cut:15.2f}  -> {error(small.apply, tuned, images.test):.2f}"
          f" after {more} epochs more")  # fmt: skip


def main() -> None:
    """Both networks, or one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("lenet5", "net"))
    chosen = parser.parse_args().only
    if chosen != "net":
        halved("LeNet-5", lenet.lenet5(), data.digits(), epochs=10, more=5)
    if chosen != "lenet5":
        halved("net, 16.9 M parameters", convnet.net(), data.digits32(), epochs=2, more=1)


if __name__ == "__main__":
    main()
