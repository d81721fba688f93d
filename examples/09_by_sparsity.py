"""Pruning by sparsity: proximal steps of a penalty towards a target, then deletion.

    python examples/09_by_sparsity.py [--steps 2000]

Trains LeNet-300-100 on 4,000 digits while Hoyer's penalty shrinks 95 % of its weights to zero, and
measures the sparsity by value, by mask, and without a threshold.
"""

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax.zoo import data, lenet, losses


def main(steps: int) -> None:
    digits = data.digits()
    model = lenet.lenet_300_100()
    params = model.init(jax.random.key(0), digits.train.x[:1])["params"]

    def loss_fn(params, batch):
        images, labels = batch
        return losses.cross_entropy(model.apply({"params": params}, images), labels)

    # A third of the steps is dense, a third prunes, and a third trains the remaining weights.
    sparsity = nnopt.pruning.cubic(0.95, steps=max(1, steps // 3), begin=steps // 3)
    tx = nnopt.pruning.proximal(sparsity, penalty="hoyer", where="**/kernel", every=5)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    state = tx.init(params)
    opt_state = optimizer.init(nnopt.trainable(tx, params, state))

    @jax.jit
    def train_step(params, state, opt_state, batch):
        _, grads = nnopt.value_and_grad(loss_fn, tx)(params, state, batch)
        moving = nnopt.trainable(tx, params, state)
        updates, opt_state = optimizer.update(grads.train, opt_state, moving)
        params, state = nnopt.step(tx, params, state, updates, grads)
        return params, state, opt_state

    def error(params):
        logits = model.apply({"params": params}, digits.test.x)
        return 100 * losses.error_rate(logits, jnp.asarray(digits.test.y))

    rng = np.random.default_rng(0)
    for number in range(1, steps + 1):
        chosen = rng.integers(len(digits.train), size=128)
        batch = digits.train.x[chosen], digits.train.y[chosen]
        params, state, opt_state = train_step(params, state, opt_state, batch)
        if number == max(1, steps // 3):
            dense = error(tx.apply(params, state))
            print(nnopt.pruning.measure_sparsity(params), "\n")

    small = tx.pack(params, state)  # Sparse leaves, which do not store zeros
    print(nnopt.pruning.measure_sparsity(small))
    nnopt.save("sparse.nnopt", small)
    before = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    after = os.path.getsize("sparse.nnopt")
    print(f"test error {dense:.1f} % dense, {error(nnopt.materialize(small)):.1f} % pruned; "
          f"{before:,} -> {after:,} bytes ({before / after:.0f}x)")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    main(**vars(parser.parse_args()))
