"""Sparse representation: prune, store only the kept weights, and continue training on them.

    python examples/04_sparse_representation.py [--steps 1500]

Prunes LeNet-300-100 to 90 %, packs it, trains the packed model (with gradients and Adam's
moments only for the kept weights), and prints the size of each storage format of the masks.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax.tree import tree_bits
from nnopt_jax.zoo import data, lenet, losses


def main(steps: int) -> None:
    digits = data.digits()
    model = lenet.lenet_300_100()
    params = model.init(jax.random.key(0), digits.train.x[:1])["params"]
    before = tree_bits(params) // 8

    def loss_fn(params, images, labels):
        return losses.cross_entropy(model.apply({"params": params}, images), labels)

    def train(tx, params, state, steps, rate):
        optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
        moments = optimizer.init(nnopt.trainable(tx, params, state))

        @jax.jit
        def step(params, state, moments, batch):
            _, grads = nnopt.value_and_grad(loss_fn, tx)(params, state, *batch)
            moving = nnopt.trainable(tx, params, state)
            updates, moments = optimizer.update(grads.train, moments, moving)
            return *nnopt.step(tx, params, state, updates, grads), moments

        rng = np.random.default_rng(0)
        for _ in range(steps):
            chosen = rng.integers(len(digits.train), size=128)
            batch = (digits.train.x[chosen], digits.train.y[chosen])
            params, state, moments = step(params, state, moments, batch)
        return params, state, tree_bits(moments) // 8

    def error(params):
        logits = model.apply({"params": nnopt.materialize(params)}, digits.test.x)
        return 100 * losses.error_rate(logits, jnp.asarray(digits.test.y))

    sparsity = optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=steps * 2 // 3)
    prune = nnopt.pruning.magnitude(sparsity, where="**/kernel", every=20)
    params, state, whole = train(prune, params, prune.init(params), steps, 2e-3)
    small = prune.pack(params, state)
    # Packed parameters are trained like any others: `chain()` is the identity transform.
    nothing = nnopt.chain()
    small, _, survivors = train(nothing, small, (), max(steps // 3, 1), 5e-4)
    print(f"optimizer state: {whole:,} bytes while pruning, {survivors:,} for the survivors")

    pruned = nnopt.materialize(small)  # from here on like a model that was pruned elsewhere
    for format in ("bitmask", "gaps", "csr", "smallest"):
        tx = nnopt.compression.sparse(format, where="**/kernel")
        kernel = tx.pack(pruned, tx.init(pruned))["fc1"]["kernel"]
        print(
            f"{format}: {kernel.support.bits // 8:,} bytes for the mask of fc1 ({kernel.support})"
        )

    try:  # stored leaves have no dense weights to quantize
        nnopt.quantization.uniform(8).init(small)
    except nnopt.errors.CompositionError as refused:
        print(refused)
    print(f"test error {error(small):.1f} %, {before:,} -> {tree_bits(small) // 8:,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    main(**vars(parser.parse_args()))
