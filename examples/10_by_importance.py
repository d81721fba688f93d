"""Pruning by importance: one trained network, pruned by two scores at the same sparsity.

    python examples/10_by_importance.py [--steps 1500]

Trains LeNet-300-100 on the 5,000 digits, then prunes 98 % of its weights in further training: by
magnitude in each layer, or by the first-order change of the loss (Taylor) over all layers. Every
step passes the gradients to `nnopt.step`, so that a score can use them.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax.zoo import data, lenet, losses


def main(steps: int) -> None:
    digits = data.digits()
    model = lenet.lenet_300_100()

    def loss_fn(params, batch):
        images, labels = batch
        return losses.cross_entropy(model.apply({"params": params}, images), labels)

    def train(tx, params):
        """Train with a transform, and return the tree to store."""
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

        rng = np.random.default_rng(0)
        for _ in range(steps):
            chosen = rng.integers(len(digits.train), size=128)
            batch = digits.train.x[chosen], digits.train.y[chosen]
            params, state, opt_state = train_step(params, state, opt_state, batch)
        return tx.pack(params, state)

    def report(name, small):
        logits = model.apply({"params": nnopt.materialize(small)}, digits.test.x)
        error = 100 * losses.error_rate(logits, jnp.asarray(digits.test.y))
        kept = [f"{np.count_nonzero(nnopt.materialize(small[n]['kernel']))}" for n in small]
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(small))
        print(f"{name}: test error {error:.1f} %, {size:,} bytes, weights left {' + '.join(kept)}")

    fresh = model.init(jax.random.key(0), digits.train.x[:1])["params"]
    dense = train(nnopt.chain(), fresh)
    report("dense", dense)

    schedule = nnopt.pruning.cubic(0.98, steps=max(1, steps * 2 // 3))
    settings = {"where": "**/kernel", "every": 5}
    judges = {
        "magnitude in each layer": nnopt.pruning.magnitude(schedule, **settings),
        "Taylor over all layers": nnopt.pruning.taylor(schedule, allocation="global", **settings),
    }
    for name, tx in judges.items():
        report(name, train(tx, dense))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    main(**vars(parser.parse_args()))
