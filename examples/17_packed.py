"""Running on packed parameters: which leaves stay packed, and the time of a call.

    python examples/17_packed.py [--steps 400] [--file packed.nnopt]

Trains LeNet-300-100, then prunes its last kernel, factors its first and quantizes all kernels to 8
bits without further training. Saves and loads the packed parameters, and runs the network on them.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax.recipe.measurement import latency
from nnopt_jax.zoo import data, lenet, losses

MODEL = lenet.lenet_300_100()


def train(params, steps, split):
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    moments = optimizer.init(params)

    @jax.jit
    def train_step(params, moments, images, labels):
        def loss(params):
            return losses.cross_entropy(MODEL.apply({"params": params}, images), labels)

        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        return optax.apply_updates(params, updates), moments

    rng = np.random.default_rng(0)
    for _ in range(steps):
        some = rng.integers(len(split), size=128)
        params, moments = train_step(params, moments, split.x[some], split.y[some])
    return params


def main(steps: int, file: str) -> None:
    digits = data.digits()
    images, labels = jnp.asarray(digits.test.x), jnp.asarray(digits.test.y)
    params = jax.jit(MODEL.init)(jax.random.key(0), images[:1])["params"]
    params = train(params, steps, digits.train)

    tx = nnopt.chain(
        nnopt.pruning.magnitude(0.5, where="fc3/kernel"),
        nnopt.compression.low_rank(24, where="fc1/kernel"),
        nnopt.quantization.uniform(8, where="**/kernel"),
    )
    nnopt.save(file, tx.pack(params, jax.jit(tx.init)(params)))
    small = nnopt.load(file)

    # Any function works, with packed leaves as arguments; it is compiled once and kept.
    apply = nnopt.on_packed(lambda params, x: MODEL.apply({"params": params}, x))
    run = jax.jit(apply)
    print(apply.report(small, images))
    for rows in (1, 128):
        took = latency(run, nnopt.materialize(small), small, images[:rows])
        print(f"batch of {rows}: {took.dense:.3f} ms dense, {took.packed:.3f} ms packed, "
              f"dense / packed {took.ratio:.2f}")  # fmt: skip
    before, after = (100 * losses.error_rate(run(p, images), labels) for p in (params, small))
    print(f"test error {before:.1f} % dense, {after:.1f} % on packed parameters")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--file", default="packed.nnopt")
    main(**vars(parser.parse_args()))
