"""Structured pruning: a network with half of its channels, in a file that contains its program.

    python examples/18_smaller_network.py [--steps 400] [--file smaller.nnopt]

Trains LeNet-5, masks half of the units of each layer in further training, removes them, trains the
smaller network, rounds it to 8 bits, and writes program and parameters.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax.zoo import data, lenet, losses


def train(apply, tx, params, split, steps):
    """Train under a transform, and return parameters and state."""
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    state = tx.init(params)
    opt_state = optimizer.init(nnopt.trainable(tx, params, state))

    @jax.jit
    def train_step(params, state, opt_state, images, labels):
        def loss_fn(params):
            return losses.cross_entropy(apply(params, images), labels)

        _, grads = nnopt.value_and_grad(loss_fn, tx)(params, state)
        moving = nnopt.trainable(tx, params, state)
        updates, opt_state = optimizer.update(grads.train, opt_state, moving)
        return *nnopt.step(tx, params, state, updates, grads), opt_state

    rng = np.random.default_rng(0)
    for _ in range(steps):
        i = rng.integers(len(split), size=64)
        params, state, opt_state = train_step(params, state, opt_state, split.x[i], split.y[i])
    return params, state


def main(steps: int, file: str) -> None:
    digits, network = data.digits(), lenet.lenet5()
    x, y = jnp.asarray(digits.test.x), jnp.asarray(digits.test.y)

    def apply(params, images):
        return network.apply({"params": params}, images)

    params = jax.jit(network.init)(jax.random.key(0), x[:1])["params"]
    dense, _ = train(apply, nnopt.chain(), params, digits.train, steps)
    graph = nnopt.graph(apply, dense, x[:1])
    print(graph.coupled)  # which axes change together
    schedule = nnopt.pruning.cubic(0.5, steps=max(1, steps // 2))
    tx = nnopt.pruning.structured(schedule).bind(graph)
    masked, state = train(apply, tx, dense, digits.train, steps)
    small = graph.shrink(masked, nnopt.pruning.kept_units(state))
    cost = nnopt.graph(small.apply, small.params, x[:64]).cost()
    print(nnopt.graph(apply, dense, x[:64]).cost().against(cost))
    tx = nnopt.quantization.uniform(8, granularity="channel", where="**/kernel")
    packed = tx.pack(*train(small.apply, tx, small.params, digits.train, steps // 2))

    def one_by_one(params, images):  # the smaller function, for any number of images
        return jax.vmap(lambda image: small.apply(params, image[None])[0])(images)

    structure = nnopt.transfer.capture(one_by_one, packed, x[:1], shapes=["b, ..."])
    nnopt.transfer.save_model(file, structure, packed)
    loaded = nnopt.transfer.load_model(file)  # needs neither Flax nor the code of the network
    a, b = (100 * losses.error_rate(z, y) for z in (jax.jit(apply)(dense, x), loaded(x)))
    was, told = sum(leaf.nbytes for leaf in jax.tree.leaves(dense)), nnopt.inspect(file)
    size = f"{was:,} -> {told.file_bytes:,} bytes, {told.program_bytes:,} of them program"
    print(f"test error {a:.1f} -> {b:.1f} %, {size}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--file", default="smaller.nnopt")
    main(**vars(parser.parse_args()))
