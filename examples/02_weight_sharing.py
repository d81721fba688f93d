"""Weight sharing in two ways: a decoder tied to its encoder, and a table of 16 values.

    python examples/02_weight_sharing.py [--steps 1500] [--file autoencoder.nnopt]

Trains an autoencoder of digits, 784-64-784. The decoder uses the transposed weights of the encoder,
so both train one matrix, whose entries share a table of 16 learned values.
"""

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax.zoo import data


def encode_and_decode(params, images):
    hidden = jax.nn.relu(images @ params["encoder"]["kernel"] + params["encoder"]["bias"][None])
    return jax.nn.sigmoid(hidden @ params["decoder"]["kernel"] + params["decoder"]["bias"][None])


def loss_fn(params, images):
    return jnp.square(encode_and_decode(params, images) - images).mean()


def train(tx, params, steps, rate, images):
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
        batch = images[rng.integers(len(images), size=128)]
        params, state, opt_state = train_step(params, state, opt_state, batch)
    return params, state


def main(steps: int, file: str) -> None:
    digits = data.digits()
    train_x, test_x = (split.x.reshape(-1, 784) for split in (digits.train, digits.test))
    first, second = jax.random.split(jax.random.key(0))
    params = {
        "encoder": {"kernel": 0.05 * jax.random.normal(first, (784, 64)), "bias": jnp.zeros(64)},
        "decoder": {"kernel": 0.05 * jax.random.normal(second, (64, 784)), "bias": jnp.zeros(784)},
    }
    tie = nnopt.compression.tie({"decoder/kernel": "encoder/kernel"}, transpose=True)
    share = nnopt.compression.codebook(16, learned=True, where="encoder/kernel")
    runs = [
        ("dense", nnopt.chain(), 2e-3),
        ("tied", tie, 1e-3),
        ("tied and shared", nnopt.chain(share, tie), 5e-4),  # the tie is last, to use the table
    ]
    sizes = []
    for name, tx, rate in runs:  # each one continues from the one before
        params, state = train(tx, params, steps, rate, train_x)
        nnopt.save(file, tx.pack(params, state))
        error = loss_fn(nnopt.materialize(nnopt.load(file)), test_x) / test_x.var()
        sizes.append(os.path.getsize(file))
        print(f"{name}: {100 * error:.1f} % of the variance unexplained, {sizes[-1]:,} bytes "
              f"({sizes[0] / sizes[-1]:.1f}x)")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--file", default="autoencoder.nnopt")
    main(**vars(parser.parse_args()))
