"""How much a small network gains from a larger one that teaches it: five seeds on full MNIST.

    python benchmarks/distill.py --data data              # about 40 minutes on two cores
    python benchmarks/distill.py --data data --choose   # held-back errors of settings

The student is LeNet-300-100 at a quarter of its width. Alone and taught, it has the same first
parameters, batches, shifts, optimizer and number of steps; test images are read once, at the end.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nnopt_jax.transfer import distillation_loss
from nnopt_jax.zoo import augment, data, lenet, losses

BATCH = 128


class Setting(NamedTuple):
    """How networks are trained."""

    teacher: str = "lenet_300_100"
    epochs: int = 40
    rate: float = 2e-3
    temperature: float = 4.0
    weight: float = 0.9


def make_epoch(
    apply: Callable[..., Any], setting: Setting, steps: int, teach: Callable[..., Any] | None
) -> tuple[Any, Callable[..., Any]]:
    """The optimizer, and one pass over the training images for one seed."""
    optimizer = optax.adam(optax.cosine_decay_schedule(setting.rate, steps * setting.epochs))

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = apply({"params": params}, x)
        alone = losses.cross_entropy(logits, y)
        if teach is None:
            return alone
        apart = distillation_loss(logits, teach(x), setting.temperature)
        return setting.weight * apart + (1 - setting.weight) * alone

    def epoch(carry: Any, key: jax.Array, images: jax.Array, labels: jax.Array) -> Any:
        shuffle, noise = jax.random.split(key)
        order = jax.random.permutation(shuffle, len(labels))[: steps * BATCH].reshape(steps, BATCH)

        def step(carry: Any, chosen: Any) -> Any:
            params, opt_state = carry
            x = augment.shift(images[chosen[0]], chosen[1])
            grads = jax.grad(loss)(params, x, labels[chosen[0]])
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, carry, (order, jax.random.split(noise, steps)))[0]

    return optimizer, epoch


def train(model: Any, seeds: range, setting: Setting, sets: data.Dataset, teach: Any = None) -> Any:
    """Trains one network for each seed, side by side."""
    images, labels = jnp.asarray(sets.train.x), jnp.asarray(sets.train.y)
    optimizer, epoch = make_epoch(model.apply, setting, len(labels) // BATCH, teach)
    epoch = jax.jit(jax.vmap(epoch, (0, 0, None, None)), donate_argnums=0)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    params = jax.vmap(lambda key: model.init(key, images[:1])["params"])(keys)
    carry = params, jax.vmap(optimizer.init)(params)
    for number in range(setting.epochs):
        keys_now = jax.vmap(lambda key, n=number: jax.random.fold_in(key, 1 + n))(keys)
        carry = epoch(carry, keys_now, images, labels)
    return jax.block_until_ready(carry[0])


@functools.partial(jax.jit, static_argnums=0)
def _logits(apply: Any, params: Any, x: jax.Array) -> jax.Array:
    return jax.vmap(lambda one: apply({"params": one}, x))(params)


def errors(model: Any, params: Any, split: data.Split) -> np.ndarray:
    """Wrong images of a split, for each seed."""
    parts = np.array_split(np.arange(len(split.x)), len(split.x) // 1000)
    logits = jnp.concatenate([_logits(model.apply, params, split.x[part]) for part in parts], 1)
    rates = [losses.error_rate(one, jnp.asarray(split.y)) for one in logits]
    return np.rint(np.asarray(rates) * len(split.x)).astype(int)


def report(name: str, model: Any, params: Any, sets: data.Dataset, test: bool, began: float) -> Any:
    """Prints and returns how many images are wrong."""
    told = {"held back": errors(model, params, sets.valid)}
    if test:
        told["test"] = errors(model, params, sets.test)
    text = "; ".join(f"{split} {x.mean():.1f} of {x.tolist()}" for split, x in told.items())
    print(f"{name}: wrong {text}; {time.time() - began:.0f} s", flush=True)
    return told.get("test", told["held back"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=Setting().epochs)
    parser.add_argument("--teacher", choices=("lenet_300_100", "lenet5"), default=Setting().teacher)
    parser.add_argument("--choose", action="store_true", help="other settings, held-back errors")
    options = parser.parse_args()
    sets, began = data.mnist(options.data), time.time()
    setting = Setting(teacher=options.teacher, epochs=options.epochs)
    seeds, test = range(options.seeds), not options.choose
    master, small = getattr(lenet, setting.teacher)(), lenet.lenet_300_100(width=0.25)
    taught_by = train(master, range(100, 101), setting, sets)
    report("teacher", master, taught_by, sets, test, began)
    first = jax.tree.map(lambda x: x[0], taught_by)
    teach = functools.partial(master.apply, {"params": first})
    alone = report("alone", small, train(small, seeds, setting, sets), sets, test, began)
    grid = [(t, w) for t in (2.0, 4.0, 8.0) for w in (0.9, 1.0)] if options.choose else [()]
    for pair in grid:
        now = setting._replace(**dict(zip(("temperature", "weight"), pair, strict=False)))
        name = f"taught, temperature {now.temperature:g}, weight {now.weight:g}"
        params = train(small, seeds, now, sets, teach)
        taught = report(name, small, params, sets, test, began)
        print(f"  {100 * (1 - taught.mean() / alone.mean()):.1f} % fewer errors", flush=True)


if __name__ == "__main__":
    main()
