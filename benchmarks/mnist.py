"""Deep Compression's networks on full MNIST: test error and every byte of the file.

    nnopt data mnist
    python benchmarks/mnist.py lenet_300_100      # five seeds
    python benchmarks/mnist.py lenet5             # three seeds

Each seed trains dense, prunes on a cubic schedule, shares the surviving weights, packs, writes one
`.nnopt` file, loads it back and runs what was loaded. Settings and stopping were chosen on 5,000
training images that are held back; the test set is read once, after the last step. A seed that was
finished is not run again, and an interrupted one goes on from its last finished stage.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax.interop.orbax import Checkpoints
from nnopt_jax.zoo import data, lenet, losses

BATCH = 200


@dataclasses.dataclass(frozen=True)
class Setting:
    """How one network is compressed.

    Args:
        model: the network, by its zoo name.
        seeds: how many runs are averaged.
        keep: weights kept in each kernel.
        clusters: shared values of each kernel.
        epochs: dense, pruning, sharing.
        l1: weight of the L1 penalty until weights are shared.
    """

    model: str
    seeds: int
    keep: dict[str, int]
    clusters: int
    epochs: tuple[int, int, int]
    l1: float


SETTINGS = {
    "lenet_300_100": Setting(
        model="lenet_300_100",
        seeds=5,
        keep={"fc1": 4800, "fc2": 1400, "fc3": 350},
        clusters=8,
        epochs=(4, 14, 14),
        l1=1e-5,
    ),
    "lenet5": Setting(
        model="lenet5",
        seeds=3,
        keep={"conv1": 250, "conv2": 3500, "fc1": 4500, "fc2": 500},
        clusters=8,
        epochs=(3, 8, 9),
        l1=5e-6,
    ),
}


# ------------------------------------------------------------------ augmentation


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """A small random affine map of each image: shift by a pixel, rotate and scale by a tenth."""
    batch = images.shape[0]
    u = jax.random.uniform(key, (batch, 6, 1, 1), minval=-1.0, maxval=1.0)
    grid = jnp.arange(28.0) - 13.5
    y, x = grid[None, :, None], grid[None, None, :]
    turn, shear = 0.1 * u[:, 1], 0.05 * u[:, 2]
    py = y + 0.1 * u[:, 0] * y + (turn + shear) * x + u[:, 4] + 14.5
    px = x + (shear - turn) * y + 0.1 * u[:, 3] * x + u[:, 5] + 14.5
    py, px = jnp.clip(py, 0, 28.999), jnp.clip(px, 0, 28.999)
    iy, ix = py.astype(jnp.int32), px.astype(jnp.int32)
    fy, fx = py - iy, px - ix
    flat = jnp.pad(images[..., 0], ((0, 0), (1, 1), (1, 1))).ravel()
    at = jnp.arange(batch)[:, None, None] * 900 + iy * 30 + ix

    def corner(offset: int) -> jax.Array:
        return jnp.take(flat, at + offset, mode="clip")

    top = corner(0) * (1 - fx) + corner(1) * fx
    bottom = corner(30) * (1 - fx) + corner(31) * fx
    return (top * (1 - fy) + bottom * fy)[..., None]


# ------------------------------------------------------------------ stages


def transforms(setting: Setting, params: dict, steps: int) -> dict[str, nnopt.Transform]:
    """The chain of each stage. The masks of the pruning stage stay in force when sharing."""

    def prune(layer: str, scheduled: bool) -> nnopt.Transform:
        kept = 1 - setting.keep[layer] / params[layer]["kernel"].size
        ramp = optax.polynomial_schedule(0.0, kept, 3, int(steps * (setting.epochs[1] - 1)))
        amount = ramp if scheduled else kept
        every = 50 if scheduled else 10**9
        return nnopt.pruning.magnitude(amount, where=f"{layer}/kernel", every=every)

    share = [
        nnopt.compression.codebook(setting.clusters, where="**/kernel", init="linear"),
        nnopt.compression.codebook(6, where="**/bias", init="linear"),
        nnopt.quantization.uniform(8, where="**", scale_dtype=jnp.bfloat16),
    ]
    return {
        "dense": nnopt.chain(),
        "prune": nnopt.chain(*(prune(layer, True) for layer in setting.keep)),
        "share": nnopt.chain(*(prune(layer, False) for layer in setting.keep), *share),
    }


class Stage(NamedTuple):
    """One stage of training, compiled once for all seeds."""

    tx: nnopt.Transform
    epochs: int
    optimizer: optax.GradientTransformation
    step: Callable[..., Any]
    init: Callable[..., Any]
    apply: Callable[..., Any]


def make_stages(setting: Setting, params: dict, steps: int) -> dict[str, Stage]:
    stages = {}
    chains = transforms(setting, params, steps)
    for (name, tx), epochs in zip(chains.items(), setting.epochs, strict=True):
        last = name == "share"
        rate = optax.cosine_decay_schedule(1e-3, steps * epochs) if last else 2e-3
        optimizer = optax.adam(rate)
        step = make_step(setting, tx, optimizer, 0.0 if last else setting.l1)
        stages[name] = Stage(tx, epochs, optimizer, step, jax.jit(tx.init), jax.jit(tx.apply))
    return stages


def make_step(
    setting: Setting, tx: nnopt.Transform, optimizer: optax.GradientTransformation, l1: float
) -> Callable[..., Any]:
    forward = getattr(lenet, setting.model)().apply

    def loss(params: dict, images: jax.Array, labels: jax.Array) -> jax.Array:
        penalty = sum(jnp.abs(layer["kernel"]).sum() for layer in params.values())
        return losses.cross_entropy(forward({"params": params}, images), labels) + l1 * penalty

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, state, opt_state, images, labels, key):
        images = augment(key, images)
        _, grads = nnopt.value_and_grad(loss, tx)(params, state, images, labels)
        moving = nnopt.trainable(tx, params, state)
        updates, opt_state = optimizer.update(grads.train, opt_state, moving)
        params, state = nnopt.step(tx, params, state, updates, grads)
        return params, state, opt_state

    return step


@functools.cache
def make_forward(model: str) -> Callable[..., Any]:
    return jax.jit(getattr(lenet, model)().apply)


def error_of(model: str, params: dict, split: data.Split) -> float:
    """Error in percent, by the zoo's own module."""
    apply = make_forward(model)
    parts = np.split(np.arange(len(split.x)), range(1000, len(split.x), 1000))
    logits = [apply({"params": params}, split.x[part]) for part in parts]
    return 100 * float(losses.error_rate(jnp.concatenate(logits), jnp.asarray(split.y)))


def train(
    setting: Setting, stages: dict[str, Stage], seed: int, sets: data.Dataset, folder: pathlib.Path
) -> dict:
    """Trains, prunes and shares one network; returns it packed."""
    images, labels = jnp.asarray(sets.train.x), jnp.asarray(sets.train.y)
    steps = len(labels) // BATCH
    key = jax.random.key(seed)
    params = getattr(lenet, setting.model)().init(key, images[:1])["params"]
    began = time.time()
    checkpoints = Checkpoints(folder / "stages", keep=len(stages))
    for number, (name, stage) in enumerate(stages.items()):
        tx = stage.tx
        state = stage.init(params)
        if number in checkpoints.steps():
            (params, state), _ = checkpoints.restore((params, state), step=number)
            continue
        opt_state = stage.optimizer.init(nnopt.trainable(tx, params, state))
        for epoch in range(stage.epochs):
            shuffle, noise = jax.random.split(jax.random.fold_in(key, 1000 * number + epoch))
            order = np.asarray(jax.random.permutation(shuffle, len(labels)))[: steps * BATCH]
            for i, chosen in enumerate(order.reshape(steps, BATCH)):
                batch = images[chosen], labels[chosen], jax.random.fold_in(noise, i)
                params, state, opt_state = stage.step(params, state, opt_state, *batch)
            held = error_of(setting.model, stage.apply(params, state), sets.valid)
            print(f"  {name} {epoch + 1}/{stage.epochs}: {held:.2f} % held back, "
                  f"{time.time() - began:.0f} s", flush=True)  # fmt: skip
        checkpoints.save(number, (params, state))
    return stages["share"].tx.pack(params, state)


def abstract(setting: Setting) -> dict:
    """Shapes of the parameters."""
    image = jnp.zeros((1, 28, 28, 1))
    return jax.eval_shape(getattr(lenet, setting.model)().init, jax.random.key(0), image)["params"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=SETTINGS)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--data")
    parser.add_argument("--output", default="runs/benchmarks/mnist")
    options = parser.parse_args()
    setting = SETTINGS[options.network]
    sets = data.mnist(options.data)
    stages = make_stages(setting, abstract(setting), len(sets.train) // BATCH)
    results = []
    for seed in range(options.seeds or setting.seeds):
        folder = pathlib.Path(options.output, options.network, str(seed))
        folder.mkdir(parents=True, exist_ok=True)
        results.append(run(setting, stages, seed, sets, folder))
        print(json.dumps(results[-1]), flush=True)
    mean = {name: float(np.mean([r[name] for r in results])) for name in results[0]}
    print(
        f"{options.network}, mean of {len(results)} seeds: {mean['test_error']:.2f} % test error, "
        f"{mean['bytes']:.0f} bytes, {mean['ratio']:.1f}x smaller"
    )


def run(
    setting: Setting, stages: dict[str, Stage], seed: int, sets: data.Dataset, folder: pathlib.Path
) -> dict:
    done = folder / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    began = time.time()
    packed = train(setting, stages, seed, sets, folder)
    path = folder / "model.nnopt"
    nnopt.save(path, packed)
    loaded = nnopt.materialize(nnopt.load(path))
    size = sum(leaf.size for leaf in jax.tree.leaves(loaded)) * 4
    result = {
        "seed": seed,
        "held_back_error": error_of(setting.model, loaded, sets.valid),
        "test_error": error_of(setting.model, loaded, sets.test),
        "bytes": path.stat().st_size,
        "ratio": size / path.stat().st_size,
        "order0_bytes": order0_bytes(loaded),
        "minutes": (time.time() - began) / 60,
    }
    done.write_text(json.dumps(result))
    return result


def order0_bytes(params: dict) -> float:
    """Sum over leaves of the order-0 entropy of all values of a leaf, zero being a value."""
    bits = 0.0
    for leaf in jax.tree.leaves(params):
        counts = np.unique(np.asarray(leaf), return_counts=True)[1]
        bits -= (counts * np.log2(counts / counts.sum())).sum()
    return bits / 8


if __name__ == "__main__":
    main()
