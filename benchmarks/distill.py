"""How much a small network gains from a larger one that teaches it: five seeds on full MNIST.

    python benchmarks/distill.py --data data            # about 9 minutes on two cores
    python benchmarks/distill.py --data data --choose   # held-back errors of other settings

The teacher is LeNet-300-100, trained on shifted images; the student is the same at a quarter of
its width, trained on the images as they are. Alone and taught, a student has the same first
parameters, batches, optimizer and number of steps. Settings were chosen on the 5,000 images held
back from training; test images are read once, at the end.
"""

from __future__ import annotations

import argparse
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nnopt_jax.transfer import distillation_loss
from nnopt_jax.zoo import augment, data, lenet, losses

BATCH = 128


class Setting(NamedTuple):
    """How a network is trained.

    Args:
        epochs: passes over the training images.
        pixels: how far they are shifted at most.
        weight: of the teacher; 0: none.
        temperature: at which the teacher is heard.
    """

    epochs: int
    pixels: int = 0
    weight: float = 0.0
    temperature: float = 4.0


class Batch(NamedTuple):
    """Images, labels, and the logits of the teacher."""

    x: jax.Array
    y: jax.Array
    said: jax.Array


def train(model: Any, seeds: range, setting: Setting, train_set: Batch) -> Any:
    """Trains one network for each seed, side by side; returns their parameters, stacked."""
    steps = len(train_set.y) // BATCH
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps * setting.epochs))

    def loss(params: Any, batch: Batch) -> jax.Array:
        logits = model.apply({"params": params}, batch.x)
        alone = losses.cross_entropy(logits, batch.y)
        if not setting.weight:
            return alone
        apart = distillation_loss(logits, batch.said, setting.temperature)
        return setting.weight * apart + (1 - setting.weight) * alone

    def step(carry: Any, chosen: jax.Array, key: jax.Array, every: Batch) -> Any:
        params, opt_state = carry
        batch = jax.tree.map(lambda x: x[chosen], every)
        if setting.pixels:
            batch = batch._replace(x=augment.shift(batch.x, key, pixels=setting.pixels))
        updates, opt_state = optimizer.update(jax.grad(loss)(params, batch), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def epoch(carry: Any, key: jax.Array, every: Batch) -> Any:
        shuffle, noise = jax.random.split(key)
        order = jax.random.permutation(shuffle, len(every.y))[: steps * BATCH]
        parts = order.reshape(steps, BATCH), jax.random.split(noise, steps)
        return jax.lax.scan(lambda c, part: (step(c, *part, every), None), carry, parts)[0]

    run = jax.jit(jax.vmap(epoch, (0, 0, None)), donate_argnums=0)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    params = jax.vmap(lambda key: model.init(key, train_set.x[:1])["params"])(keys)
    carry = params, jax.vmap(optimizer.init)(params)
    for number in range(setting.epochs):
        folded = jax.vmap(functools.partial(jax.random.fold_in, data=1 + number))(keys)
        carry = run(carry, folded, train_set)
    return carry[0]


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: Any, params: Any, x: jax.Array) -> jax.Array:
    return jax.vmap(lambda one: model.apply({"params": one}, x))(params)


def logits(model: Any, params: Any, x: np.ndarray) -> jax.Array:
    """Of all images, (seeds, images, classes)."""
    parts = np.split(x, len(x) // 1000)
    return jnp.concatenate([_logits(model, params, part) for part in parts], 1)


def wrong(model: Any, params: Any, split: data.Split) -> np.ndarray:
    """How many images of a split each network gets wrong."""
    said = np.asarray(logits(model, params, split.x)).argmax(-1)
    return (said != split.y).sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--choose", action="store_true")
    options = parser.parse_args()
    sets, began = data.mnist(options.data), time.time()
    seeds, big, small = range(options.seeds), lenet.LeNet300100(10), lenet.LeNet300100(10, 0.25)
    images, labels = jnp.asarray(sets.train.x), jnp.asarray(sets.train.y)
    every = Batch(images, labels, jnp.zeros((len(labels), 10)))

    def report(name: str, model: Any, params: Any) -> np.ndarray:
        splits = {"held back": sets.valid} if options.choose else {"test": sets.test}
        ((split, counts),) = [(name, wrong(model, params, part)) for name, part in splits.items()]
        print(f"{name}: {counts.mean():.1f} {split} images wrong {counts.tolist()}, "
              f"{time.time() - began:.0f} s", flush=True)  # fmt: skip
        return counts.mean()

    teacher = train(big, range(100, 101), Setting(40, pixels=2), every)
    report("teacher", big, teacher)
    every = every._replace(said=logits(big, teacher, sets.train.x)[0])
    alone = report("alone", small, train(small, seeds, Setting(options.epochs), every))
    grid = [(w, t) for t in (2.0, 4.0, 8.0) for w in (0.7, 0.9)] if options.choose else [(0.9, 4.0)]
    for weight, temperature in grid:
        setting = Setting(options.epochs, weight=weight, temperature=temperature)
        params = train(small, seeds, setting, every)
        taught = report(f"taught, weight {weight}, temperature {temperature:g}", small, params)
        print(f"  {100 * (1 - taught / alone):.0f} % fewer", flush=True)


if __name__ == "__main__":
    main()
