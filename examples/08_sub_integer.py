"""Weights of four bits and fewer: the errors of each grid on one trained network.

    python examples/08_sub_integer.py [--steps 1000]

Trains LeNet-300-100 on the 5,000 digits, then continues training on a grid, with learned steps
(LSQ) or with a scale for each group of weights. Compares it with rounding alone.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax.zoo import data, lenet, losses


def in_groups(method, *args, **settings) -> nnopt.Transform:
    """Return rules with group sizes that divide the 784, 300 and 100 inputs of the layers."""
    return nnopt.chain(
        method(*args, **settings, group=98, where="fc1/kernel"),
        method(*args, **settings, group=100, where="re:fc[23]/kernel"),
    )


def main(steps: int) -> None:
    digits, model = data.digits(), lenet.lenet_300_100()

    def loss_fn(params, batch):
        images, labels = batch
        return losses.cross_entropy(model.apply({"params": params}, images), labels)

    def train(tx, params, rate):
        """Return the packed tree before and after training with a transform."""
        state, optimizer = tx.init(params), optax.adam(optax.cosine_decay_schedule(rate, steps))
        opt_state = optimizer.init(nnopt.trainable(tx, params, state))
        at_once = tx.pack(params, state)

        @jax.jit
        def train_step(params, state, opt_state, batch):
            _, grads = nnopt.value_and_grad(loss_fn, tx)(params, state, batch)
            moving = nnopt.trainable(tx, params, state)  # including the learned steps
            updates, opt_state = optimizer.update(grads.train, opt_state, moving)
            return *nnopt.step(tx, params, state, updates, grads), opt_state

        rng = np.random.default_rng(0)
        for _ in range(steps):
            chosen = rng.integers(len(digits.train), size=128)
            batch = digits.train.x[chosen], digits.train.y[chosen]
            params, state, opt_state = train_step(params, state, opt_state, batch)
        return at_once, tx.pack(params, state)

    def error(small) -> float:
        logits = model.apply({"params": nnopt.materialize(small)}, digits.test.x)
        return 100 * float(losses.error_rate(logits, jnp.asarray(digits.test.y)))

    fresh = model.init(jax.random.key(0), digits.train.x[:1])["params"]
    _, dense = train(nnopt.chain(), fresh, 2e-3)
    print(f"float32: test error {error(dense):.1f} %")
    grids = {
        "LSQ, 4 bits": nnopt.quantization.lsq(4, where="**/kernel"),
        "LSQ, 2 bits": nnopt.quantization.lsq(2, where="**/kernel"),
        "NF4, groups of 100": in_groups(nnopt.quantization.nf4, scale_dtype=jnp.float16),
        "3 bits, groups of 100": in_groups(nnopt.quantization.uniform, 3, scale_dtype=jnp.float16),
    }
    for name, tx in grids.items():
        at_once, small = train(tx, dense, 5e-4)
        size = sum(x.nbytes for x in jax.tree.leaves(small))
        print(
            f"{name}: {error(at_once):.1f} % rounded, {error(small):.1f} % trained, {size:,} bytes"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    main(**vars(parser.parse_args()))
