"""Deep Compression in your own training loop, with any model and any optax optimizer.

    python examples/01_training_loop.py [--steps 2000] [--file model.nnopt]

Prunes LeNet-300-100 to 95 % on a cubic schedule, lets the remaining weights share 16 values, and
writes one small file.
"""

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax.zoo import data, lenet, losses


def main(steps: int, file: str) -> None:
    digits = data.digits()
    model = lenet.lenet_300_100()
    params = model.init(jax.random.key(0), digits.train.x[:1])["params"]

    def loss_fn(params, batch):
        images, labels = batch
        return losses.cross_entropy(model.apply({"params": params}, images), labels)

    sparsity = optax.polynomial_schedule(0.0, 0.95, power=3, transition_steps=steps * 2 // 3)
    tx = nnopt.chain(
        nnopt.pruning.magnitude(sparsity, where="**/kernel", every=20),
        nnopt.compression.codebook(clusters=16, learned=True, where="**/kernel"),
    )
    print(nnopt.plan(tx, params))  # the plan, before any weight changes

    optimizer = optax.adam(1e-3)
    state = tx.init(params)
    opt_state = optimizer.init(nnopt.trainable(tx, params, state))

    @jax.jit
    def train_step(params, state, opt_state, batch):
        loss, grads = nnopt.value_and_grad(loss_fn, tx)(params, state, batch)
        moving = nnopt.trainable(tx, params, state)
        updates, opt_state = optimizer.update(grads.train, opt_state, moving)
        params, state = nnopt.step(tx, params, state, updates, grads)
        return params, state, opt_state, loss

    rng = np.random.default_rng(0)
    for number in range(1, steps + 1):
        chosen = rng.integers(len(digits.train), size=128)
        batch = digits.train.x[chosen], digits.train.y[chosen]
        params, state, opt_state, loss = train_step(params, state, opt_state, batch)
        if number % 500 == 0:
            print(f"step {number}: loss {loss:.4f}")

    small = tx.pack(params, state)  # Sparse(values Codebook(...)) leaves
    nnopt.save(file, small)
    small = nnopt.load(file)  # no model code, no pickle
    run = jax.jit(nnopt.on_packed(model.apply))  # works on packed parameters, too
    logits = run({"params": small}, digits.test.x)
    error = 100 * losses.error_rate(logits, jnp.asarray(digits.test.y))
    before = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    after = os.path.getsize(file)
    print(f"test error {error:.1f} %, {before:,} -> {after:,} bytes ({before / after:.0f}x)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--file", default="model.nnopt")
    main(**vars(parser.parse_args()))
