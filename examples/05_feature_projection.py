"""Feature mapping: networks on random, principal and learned projections of their inputs.

    python examples/05_feature_projection.py [--steps 1500]

Maps the 784 pixels of a digit to 40 features in front of a small network, trains both, and writes
them to one file in 8 bits.
"""

import argparse
import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax.compression import johnson_lindenstrauss, pca, projected
from nnopt_jax.zoo import augment, data, losses

COMPONENTS = 40


def network(key):
    first, second = jax.random.split(key)
    draw = jax.nn.initializers.he_normal()
    return {"fc1": draw(first, (COMPONENTS, 100)), "fc2": draw(second, (100, 10))}


def apply(layers, x):
    return jax.nn.relu(x @ layers["fc1"]) @ layers["fc2"]


def main(steps: int) -> None:
    digits = data.digits()
    tx = nnopt.quantization.uniform(8, granularity="channel")

    def trained(projection, learned):
        """Return the packed model and its error on the test images."""
        run = projected(apply, learned=learned)
        params = {"projection": projection, "model": network(jax.random.key(0))}
        optimizer, state = optax.adam(optax.cosine_decay_schedule(2e-3, steps)), tx.init(params)
        moments = optimizer.init(nnopt.trainable(tx, params, state))

        @jax.jit
        def step(params, state, moments, batch):
            images, labels, key = batch
            seen = augment.shift(images, key)
            loss = lambda p: losses.cross_entropy(run(p, seen), labels)  # noqa: E731
            _, grads = nnopt.value_and_grad(loss, tx)(params, state)
            moving = nnopt.trainable(tx, params, state)
            updates, moments = optimizer.update(grads.train, moments, moving)
            return *nnopt.step(tx, params, state, updates, grads), moments

        rng = np.random.default_rng(0)
        for number in range(steps):
            chosen = rng.integers(len(digits.train), size=128)
            batch = digits.train.x[chosen], digits.train.y[chosen], jax.random.key(number)
            params, state, moments = step(params, state, moments, batch)
        logits = run(nnopt.materialize(small := tx.pack(params, state)), digits.test.x)
        return small, 100 * losses.error_rate(logits, jnp.asarray(digits.test.y))

    for name, start, learned in (
        ("random projection", johnson_lindenstrauss(jax.random.key(1), 784, COMPONENTS), False),
        ("principal components", pca(digits.train.x, COMPONENTS), False),
        ("principal components, learned on", pca(digits.train.x, COMPONENTS), True),
    ):
        small, error = trained(start, learned)
        with tempfile.TemporaryDirectory() as folder:
            nnopt.save(f"{folder}/model.nnopt", small)
            size = os.path.getsize(f"{folder}/model.nnopt")
        print(f"{name}: test error {error:.1f} %, {size:,} bytes in the file")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    main(**vars(parser.parse_args()))
