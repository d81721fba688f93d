"""Deep Compression's networks on full MNIST: test error and every byte of the file.

    nnopt data mnist
    python benchmarks/mnist.py lenet_300_100      # five seeds
    python benchmarks/mnist.py lenet5             # three seeds

Each seed trains dense, cuts the weakest units (LeNet-5 only), prunes on a cubic schedule, shares
the surviving weights, packs, writes one
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
from coder import entropy

import nnopt_jax as nnopt
from nnopt_jax.interop.orbax import Checkpoints
from nnopt_jax.zoo import data, lenet, losses
from nnopt_jax.zoo.augment import affine

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
        units: how many hidden units of each layer outlive dense training; default all.
    """

    model: str
    seeds: int
    keep: dict[str, int]
    clusters: int
    epochs: tuple[int, int, int]
    l1: float
    units: dict[str, int] = dataclasses.field(default_factory=dict)


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
        keep={"conv1": 220, "conv2": 3000, "fc1": 4000, "fc2": 500},
        clusters=8,
        epochs=(3, 10, 12),
        l1=5e-6,
        units={"conv1": 14, "conv2": 32, "fc1": 128},
    ),
}


# ------------------------------------------------------------------ fewer units


def cut(params: dict, units: dict[str, int]) -> dict:
    """Keeps the hidden units of LeNet-5 whose weights are greatest, in and out; strongest first."""
    if not units:
        return params
    kernels = {name: layer["kernel"] for name, layer in params.items()}
    kernels["fc1"] = kernels["fc1"].reshape(16, 50, 500)
    order: dict[str, Any] = {"fc2": slice(None)}
    for name, reader in (("conv1", "conv2"), ("conv2", "fc1"), ("fc1", "fc2")):
        into = jnp.linalg.norm(kernels[name].reshape(-1, kernels[name].shape[-1]), axis=0)
        out = jnp.linalg.norm(jnp.moveaxis(kernels[reader], -2, 0).reshape(into.size, -1), axis=1)
        order[name] = jnp.argsort(-into * out)[: units[name]]
    kept = {"conv1": kernels["conv1"][..., order["conv1"]]}
    for name, source in (("conv2", "conv1"), ("fc1", "conv2"), ("fc2", "fc1")):
        kept[name] = kernels[name][..., order[source], :][..., order[name]]
    kept["fc1"] = kept["fc1"].reshape(-1, units["fc1"])
    return {
        name: {"kernel": kept[name], "bias": layer["bias"][order[name]]}
        for name, layer in params.items()
    }


def widen_leaf(path: str, leaf: jax.Array, like: jax.Array) -> jax.Array:
    """Puts the units of a leaf, or of its mask, back into the full shape: zeros for the others."""
    if path == "fc1/kernel":  # its rows are 16 positions of conv2's units
        units = leaf.shape[0] // 16
        full = like.shape[0] // 16
        leaf = jnp.pad(leaf.reshape(16, units, -1), ((0, 0), (0, full - units), (0, 0)))
        leaf = leaf.reshape(like.shape[0], -1)
    room = [(0, n - m) for m, n in zip(leaf.shape, like.shape, strict=True)]
    return jnp.pad(leaf, room)


def widen(params: dict, full: dict) -> dict:
    """Puts the units of all leaves back into the full shapes."""
    narrow, like = nnopt.tree.flatten(params), nnopt.tree.flatten(full)
    wide = {path: widen_leaf(path, leaf, like[path]) for path, leaf in narrow.items()}
    return nnopt.tree.unflatten(full, wide)


def lenet5_of_any_width(variables: dict, images: jax.Array) -> jax.Array:
    """LeNet-5 as the zoo has it, for any number of units."""
    params = variables["params"]
    x = _pool(_convolve(params["conv1"], images))
    x = _pool(_convolve(params["conv2"], x)).reshape(images.shape[0], -1)
    x = jax.nn.relu(x @ params["fc1"]["kernel"] + params["fc1"]["bias"])
    return x @ params["fc2"]["kernel"] + params["fc2"]["bias"]


def _convolve(layer: dict, x: jax.Array) -> jax.Array:
    """A valid convolution as one product with the kernel's Toeplitz matrix: fast on a CPU."""
    size, _, inputs, outputs = layer["kernel"].shape
    batch, side = x.shape[:2]
    to = side - size + 1
    rows = jnp.concatenate([x[:, i : i + to].reshape(batch, to, -1) for i in range(size)], -1)
    matrix = jnp.zeros((size, side, inputs, to, outputs))
    for i in range(to):
        matrix = matrix.at[:, i : i + size, :, i].set(layer["kernel"])
    y = rows.reshape(batch * to, -1) @ matrix.reshape(-1, to * outputs)
    return y.reshape(batch, to, to, outputs) + layer["bias"]


def _pool(x: jax.Array) -> jax.Array:
    x = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


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
        narrow = setting.units and name != "dense"
        forward = lenet5_of_any_width if narrow else getattr(lenet, setting.model)().apply
        step = make_step(forward, tx, optimizer, 0.0 if last else setting.l1)
        stages[name] = Stage(tx, epochs, optimizer, step, jax.jit(tx.init), jax.jit(tx.apply))
    return stages


def make_step(
    forward: Callable[..., Any],
    tx: nnopt.Transform,
    optimizer: optax.GradientTransformation,
    l1: float,
) -> Callable[..., Any]:
    def loss(params: dict, images: jax.Array, labels: jax.Array) -> jax.Array:
        penalty = sum(jnp.abs(layer["kernel"]).sum() for layer in params.values())
        return losses.cross_entropy(forward({"params": params}, images), labels) + l1 * penalty

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, state, opt_state, images, labels, key):
        images = affine(images, key)
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
    full = params = getattr(lenet, setting.model)().init(key, images[:1])["params"]
    state: Any = ()
    began = time.time()
    checkpoints = Checkpoints(folder / "stages", keep=len(stages))
    for number, (name, stage) in enumerate(stages.items()):
        tx = stage.tx
        if number == 1:
            params = cut(params, setting.units)
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
            shown = widen(stage.apply(params, state), full)
            held = error_of(setting.model, shown, sets.valid)
            print(f"  {name} {epoch + 1}/{stage.epochs}: {held:.2f} % held back, "
                  f"{time.time() - began:.0f} s", flush=True)  # fmt: skip
        checkpoints.save(number, (params, state))
    return repack(setting, params, state, full)


def repack(setting: Setting, params: dict, state: tuple, full: dict) -> dict:
    """Packs in the full shapes: units that were cut are pruned weights."""
    like = nnopt.tree.flatten(full)

    def wide(part: nnopt.State) -> nnopt.State:
        rest = {
            path: {**held, "mask": widen_leaf(path, held["mask"], like[path])}
            for path, held in part.rest.items()
        }
        return part._replace(rest=rest)

    pruned = len(setting.keep)
    tx = transforms(setting, full, 1)["share"]
    return tx.pack(widen(params, full), (*map(wide, state[:pruned]), *state[pruned:]))


def abstract(setting: Setting) -> dict:
    """Shapes of the parameters that are pruned."""
    image = jnp.zeros((1, 28, 28, 1))
    make = getattr(lenet, setting.model)().init
    return jax.eval_shape(lambda: cut(make(jax.random.key(0), image)["params"], setting.units))


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
    return sum(entropy(np.asarray(leaf)) for leaf in jax.tree.leaves(params))


if __name__ == "__main__":
    main()
