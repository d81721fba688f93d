"""Integer quantization: 8-bit weights and activations in a network of 16.9 million weights.

    python examples/06_integer.py [--steps 150]

Trains conv 64, conv 128, average pool, dense 512 and dense 10 on digits of 32x32x3. A transform
rounds the weights, with a scale for each output channel; a function that Flax calls on the input of
every layer rounds the activations, on the range of the batch in training and calibrated afterwards.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import nnopt_jax as nnopt
from nnopt_jax.quantization import Range, dynamic, fake_quant, percentile_grid, update_range
from nnopt_jax.zoo import convnet, data, losses


def on_inputs(change):
    """Replace the input x of each layer by `change(name, x)` inside of this context."""

    def intercept(call, args, kwargs, context):
        if isinstance(context.module, nn.Conv | nn.Dense):
            args = (change(context.module.name, args[0]),)
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)


def main(steps: int) -> None:
    digits, model = data.digits32(), convnet.net()
    params = model.init(jax.random.key(0), digits.train.x[:1])["params"]
    tx = nnopt.quantization.uniform(8, granularity="channel", where="**/kernel")
    state, optimizer = tx.init(params), optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    opt_state = optimizer.init(nnopt.trainable(tx, params, state))

    def loss_fn(params, images, labels):
        with on_inputs(lambda name, x: dynamic(x, symmetric=False)):
            return losses.cross_entropy(model.apply({"params": params}, images), labels)

    @jax.jit
    def train_step(params, state, opt_state, *batch):
        _, grads = nnopt.value_and_grad(loss_fn, tx)(params, state, *batch)
        moving = nnopt.trainable(tx, params, state)
        updates, opt_state = optimizer.update(grads.train, opt_state, moving)
        return *nnopt.step(tx, params, state, updates, grads), opt_state

    rng, x, y = np.random.default_rng(0), digits.train.x, digits.train.y
    for _ in range(steps):
        some = rng.integers(len(x), size=32)
        params, state, opt_state = train_step(params, state, opt_state, x[some], y[some])

    small = tx.pack(params, state)
    seen = {name: Range.start() for name in params}  # a histogram of the inputs of each layer

    def note(name, x):
        seen[name] = update_range(seen[name], x)
        return x

    def error(change, x=digits.test.x, y=digits.test.y) -> float:
        with on_inputs(change):
            logits = model.apply({"params": nnopt.materialize(small)}, x)
        return 100 * float(losses.error_rate(logits, jnp.asarray(y)))

    error(note, x[:64], y[:64])
    grids = {name: percentile_grid(seen[name], 99.99, symmetric=False) for name in seen}
    both = error(lambda name, x: fake_quant(x, *grids[name]))
    sizes = [f"{sum(x.nbytes for x in jax.tree.leaves(tree)):,}" for tree in (params, small)]
    print(f"8-bit weights and activations: test error {both:.1f} %, {' -> '.join(sizes)} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    main(**vars(parser.parse_args()))
