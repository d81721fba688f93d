"""Pruning at random: a network that is sparse from its first step, with a static mask or RigL.

    python examples/11_at_random.py [--steps 2000]

Trains LeNet-300-100 on 4,000 digits with 5 % of its weights, drawn at random. The static mask keeps
these weights; RigL repeatedly drops the smallest of them and grows as many absent weights, those of
greatest gradient.
"""

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax.zoo import data, lenet, losses

SPARSITY = 0.95


def train(tx, steps, digits, model):
    """Return the packed parameters after some steps under a transform."""
    params = model.init(jax.random.key(0), digits.train.x[:1])["params"]
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    state = tx.init(params, key=jax.random.key(1))  # the mask is drawn from the key
    opt_state = optimizer.init(nnopt.trainable(tx, params, state))

    def loss_fn(params, batch):
        images, labels = batch
        return losses.cross_entropy(model.apply({"params": params}, images), labels)

    @jax.jit
    def train_step(params, state, opt_state, batch):
        _, grads = nnopt.value_and_grad(loss_fn, tx)(params, state, batch)
        moving = nnopt.trainable(tx, params, state)
        updates, opt_state = optimizer.update(grads.train, opt_state, moving)
        params, state = nnopt.step(tx, params, state, updates, grads)  # RigL uses grads.dense
        return params, state, opt_state

    rng = np.random.default_rng(0)
    for _ in range(steps):
        chosen = rng.integers(len(digits.train), size=128)
        batch = digits.train.x[chosen], digits.train.y[chosen]
        params, state, opt_state = train_step(params, state, opt_state, batch)
    return jax.jit(tx.pack)(params, state)  # a leaf always keeps the same number of weights


def main(steps: int) -> None:
    digits, model = data.digits(), lenet.lenet_300_100()
    end_step = max(1, steps * 3 // 4)
    transforms = {
        "random": nnopt.pruning.random_mask(SPARSITY, where="**/kernel", allocation="erk"),
        "RigL": nnopt.pruning.rigl(SPARSITY, where="**/kernel", end_step=end_step, every=50),
    }
    results = []
    for name, tx in transforms.items():
        small = train(tx, steps, digits, model)
        logits = model.apply({"params": nnopt.materialize(small)}, digits.test.x)
        nnopt.save("sparse.nnopt", small)
        error = 100 * losses.error_rate(logits, jnp.asarray(digits.test.y))
        results.append(f"{error:.1f} % {name} ({os.path.getsize('sparse.nnopt'):,} bytes)")
    print(f"{100 * SPARSITY:.0f} % zeros: test error " + ", ".join(results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    main(**vars(parser.parse_args()))
