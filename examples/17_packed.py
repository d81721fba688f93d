"""Running on packed parameters: what stays packed, what is made dense, and what a call takes.

    python examples/17_packed.py [--steps 400] [--file packed.nnopt]

Trains LeNet-300-100, prunes its last kernel, factors its first, puts all on 8-bit grids, trains on
for a while, saves, loads, and runs what was loaded.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax.recipe.latency import latency
from nnopt_jax.zoo import data, lenet, losses

MODEL = lenet.lenet_300_100()


def loss_fn(params, images, labels):
    return losses.cross_entropy(MODEL.apply({"params": params}, images), labels)


def train(tx, params, steps, rate, split):
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    state = tx.init(params)
    moments = optimizer.init(nnopt.trainable(tx, params, state))

    @jax.jit
    def train_step(params, state, moments, *batch):
        _, grads = nnopt.value_and_grad(loss_fn, tx)(params, state, *batch)
        moving = nnopt.trainable(tx, params, state)
        updates, moments = optimizer.update(grads.train, moments, moving)
        return *nnopt.step(tx, params, state, updates, grads), moments

    rng = np.random.default_rng(0)
    for _ in range(steps):
        some = rng.integers(len(split), size=128)
        params, state, moments = train_step(params, state, moments, split.x[some], split.y[some])
    return params, state


def main(steps: int, file: str) -> None:
    digits = data.digits()
    params = MODEL.init(jax.random.key(0), digits.train.x[:1])["params"]
    params, _ = train(nnopt.chain(), params, steps, 2e-3, digits.train)
    tx = nnopt.chain(
        nnopt.pruning.magnitude(0.8, where="fc3/kernel"),
        nnopt.compression.low_rank(24, where="fc1/kernel"),
        nnopt.quantization.uniform(8, where="**/kernel"),
    )
    params, state = train(tx, params, max(steps // 2, 1), 5e-4, digits.train)
    nnopt.save(file, tx.pack(params, state))
    small = nnopt.load(file)

    # Any function; packed leaves go in by its arguments. Compiled once, kept.
    apply = nnopt.on_packed(lambda params, x: MODEL.apply({"params": params}, x))
    images, labels = jnp.asarray(digits.test.x), jnp.asarray(digits.test.y)
    print(apply.report(small, images))
    run = jax.jit(apply)
    error = 100 * losses.error_rate(run(small, images), labels)
    for rows in (1, 128):
        took = latency(run, nnopt.materialize(small), small, images[:rows])
        print(f"batch of {rows}: {took.dense:.3f} ms dense, {took.packed:.3f} ms packed, "
              f"dense / packed {took.ratio:.2f}")  # fmt: skip
    print(f"test error {error:.1f} % on packed parameters")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--file", default="packed.nnopt")
    main(**vars(parser.parse_args()))
