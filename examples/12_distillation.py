"""Knowledge transfer by distillation: a small network learns from the outputs of a larger one.

    python examples/12_distillation.py [--steps 3000]

Trains LeNet-300-100 on 4,000 randomly shifted digits. Then trains a network of a quarter of its
width on unshifted digits, without and with this teacher, from the same initial parameters.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax.zoo import augment, data, lenet, losses


def main(steps: int) -> None:
    digits = data.digits()
    large, small = lenet.lenet_300_100(), lenet.lenet_300_100(width=0.25)

    def train(model, loss_fn, seed):
        """Train any network with any loss `(logits, images, labels) -> scalar`."""
        optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
        params = model.init(jax.random.key(seed), digits.train.x[:1])["params"]
        opt_state = optimizer.init(params)

        @jax.jit
        def train_step(params, opt_state, images, labels, key):
            images = augment.shift(images, key) if model is large else images
            grads = jax.grad(lambda p: loss_fn(model.apply({"params": p}, images), images, labels))
            updates, opt_state = optimizer.update(grads(params), opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        rng, key = np.random.default_rng(seed), jax.random.key(seed)
        for number in range(steps):
            chosen = rng.integers(len(digits.train), size=128)
            batch = digits.train.x[chosen], digits.train.y[chosen]
            params, opt_state = train_step(
                params, opt_state, *batch, jax.random.fold_in(key, number)
            )
        return params

    def error(model, params):
        logits = model.apply({"params": params}, digits.test.x)
        return 100 * losses.error_rate(logits, jnp.asarray(digits.test.y))

    def alone(logits, images, labels):
        return losses.cross_entropy(logits, labels)

    teacher = train(large, alone, seed=0)

    def taught(logits, images, labels):
        said = large.apply({"params": teacher}, images)
        apart = nnopt.transfer.distillation_loss(logits, said, temperature=4.0)
        return 0.9 * apart + 0.1 * alone(logits, images, labels)

    students = {"alone": train(small, alone, seed=1), "taught": train(small, taught, seed=1)}
    size = sum(leaf.size for leaf in jax.tree.leaves(students["taught"]))
    print(
        f"test error {error(large, teacher):.1f} % of the teacher; of a student of {size:,} weights"
    )
    print(", ".join(f"{error(small, params):.1f} % {name}" for name, params in students.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    main(**vars(parser.parse_args()))
