"""Low rank: LeNet-5 with low-rank dense layers and a low-rank second convolution.

    python examples/03_low_rank.py [--steps 400] [--file lenet5.nnopt]

Trains the network, keeps the singular directions with 80 % of the energy of each kernel, trains the
factors for half as many steps, and quantizes them to 8 bits.
"""

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax.zoo import data, lenet, losses

MODEL = lenet.lenet5()


def loss_fn(params, batch):
    images, labels = batch
    return losses.cross_entropy(MODEL.apply({"params": params}, images), labels)


def train(tx, params, steps, rate, split):
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
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
        chosen = rng.integers(len(split), size=64)
        batch = split.x[chosen], split.y[chosen]
        params, state, opt_state = train_step(params, state, opt_state, batch)
    return params, state


def error_of(params, split):
    logits = MODEL.apply({"params": params}, split.x)
    return 100 * float(losses.error_rate(logits, jnp.asarray(split.y)))


def main(steps: int, file: str) -> None:
    digits = data.digits()
    params = MODEL.init(jax.random.key(0), digits.train.x[:1])["params"]
    params, _ = train(nnopt.chain(), params, steps, 2e-3, digits.train)
    before = error_of(params, digits.test)

    # The rank depends on the weights, so `init` runs outside of jit; where= excludes conv1.
    factor = nnopt.compression.low_rank(energy=0.8, where="re:(conv2|fc1)/kernel")
    grid = nnopt.quantization.uniform(8, where="re:(conv2|fc1)/kernel")
    tx = nnopt.chain(factor, grid)
    params, state = train(tx, params, max(1, steps // 2), 5e-4, digits.train)
    small = tx.pack(params, state)
    print(small["conv2"]["kernel"], small["fc1"]["kernel"], sep="\n")
    nnopt.save(file, small)
    after = error_of(nnopt.materialize(nnopt.load(file)), digits.test)
    dense, size = 4 * sum(leaf.size for leaf in jax.tree.leaves(params)), os.path.getsize(file)
    print(f"test error {before:.1f} % dense, {after:.1f} % factored; {dense:,} -> {size:,} bytes "
          f"({dense / size:.1f}x)")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--file", default="lenet5.nnopt")
    main(**vars(parser.parse_args()))
