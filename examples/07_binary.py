"""Binary and ternary weights: a batch-normalized MLP, trained from scratch.

    python examples/07_binary.py [--steps 1500] [--file model.nnopt]

Trains two hidden layers of 256 units on the 5,000 digits three times: dense, binary (BinaryConnect
uses the signs of the weights) and ternary (TTQ learns the two values of each layer). Normalization
absorbs the scale of the weights, so that signs suffice.
"""

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax.zoo import data, losses
from nnopt_jax.zoo.perceptrons import mlp


def main(steps: int, file: str) -> None:
    digits = data.digits()
    model = mlp(width=256, layers=2)
    fresh = model.init(jax.random.key(0), digits.train.x[:1])

    def loss_fn(params, stats, batch):
        images, labels = batch
        variables = {"params": params, "batch_stats": stats}
        logits, moved = model.apply(variables, images, train=True, mutable="batch_stats")
        return losses.cross_entropy(logits, labels), moved["batch_stats"]

    def train(tx):
        """Train from scratch with a transform, and return the tree to store."""
        optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
        params, stats = fresh["params"], fresh["batch_stats"]
        state = tx.init(params)
        opt_state = optimizer.init(nnopt.trainable(tx, params, state))
        slope = nnopt.value_and_grad(loss_fn, tx, has_aux=True)

        @jax.jit
        def train_step(params, state, opt_state, stats, batch):
            (_, stats), grads = slope(params, state, stats, batch)
            moving = nnopt.trainable(tx, params, state)
            updates, opt_state = optimizer.update(grads.train, opt_state, moving)
            params, state = nnopt.step(tx, params, state, updates, grads)
            return params, state, opt_state, stats

        rng = np.random.default_rng(0)
        for _ in range(steps):
            chosen = rng.integers(len(digits.train), size=128)
            batch = digits.train.x[chosen], digits.train.y[chosen]
            params, state, opt_state, stats = train_step(params, state, opt_state, stats, batch)
        return {"params": tx.pack(params, state), "batch_stats": stats}

    methods = {
        "dense": nnopt.chain(),
        "binary": nnopt.quantization.binary_connect(where="**/kernel"),
        "ternary": nnopt.quantization.ttq(0.1, where="**/kernel"),
    }
    for name, tx in methods.items():
        small = train(tx)
        nnopt.save(file, small)
        logits = model.apply(nnopt.materialize(nnopt.load(file)), digits.test.x)
        error = 100 * losses.error_rate(logits, jnp.asarray(digits.test.y))
        kernel = small["params"]["fc1"]["kernel"]
        print(f"{name}: {kernel if nnopt.arrays.is_node(kernel) else 'float32 kernels'}")
        print(f"  test error {error:.1f} %, {os.path.getsize(file):,} bytes on disk")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--file", default="model.nnopt")
    main(**vars(parser.parse_args()))
