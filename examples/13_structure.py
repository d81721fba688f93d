"""A model in one small file, program and parameters, used and trained further without its code.

    python examples/13_structure.py [--steps 1000] [--file model.nnopt]

Prunes LeNet-300-100 to 95 %, shares 16 values, and writes program and packed parameters. The second
part uses neither Flax nor the code of the network, and trains adapters on digits upside down.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax.zoo import data, lenet, losses


def train(apply, tx, params, split, steps):
    """Return the packed parameters after some steps under a transform."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    state = tx.init(params, key=jax.random.key(1))
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
        some = rng.integers(len(split), size=128)
        batch = split.x[some], split.y[some]
        params, state, opt_state = train_step(params, state, opt_state, *batch)
    return tx.pack(params, state)


def main(steps: int, file: str) -> None:
    digits, network = data.digits(), lenet.lenet_300_100()
    tx = nnopt.chain(
        nnopt.pruning.magnitude(nnopt.pruning.cubic(0.95, steps * 2 // 3), where="**/kernel"),
        nnopt.compression.codebook(clusters=16, learned=True, where="**/kernel"),
    )
    params = network.init(jax.random.key(0), digits.train.x[:1])["params"]

    def apply(params, images):
        return network.apply({"params": params}, images)

    small = train(apply, tx, params, digits.train, steps)
    images = jax.ShapeDtypeStruct((1, 28, 28, 1), "float32")
    structure = nnopt.transfer.capture(apply, small, images, shapes=["b, ..."])
    nnopt.transfer.save_model(file, structure, small)

    # From here on, perhaps on another machine, only the file is needed.
    model = nnopt.transfer.load_model(file)
    print(model.structure)
    told, lora = nnopt.inspect(file), nnopt.transfer.lora(rank=8, where="**/kernel")
    turned = dataclasses.replace(digits.train, x=digits.train.x[:, ::-1, ::-1])
    adapted = train(model.structure.apply, lora, model.params, turned, steps // 2)
    nnopt.transfer.save_model(file, model.structure, adapted)
    again, y = nnopt.transfer.load_model(file), jnp.asarray(digits.test.y)
    x, down = digits.test.x, digits.test.x[:, ::-1, ::-1]
    a, b, c = (100 * losses.error_rate(z, y) for z in (model(x), model(down), again(down)))
    size = f"{told.file_bytes:,} bytes, {told.program_bytes:,} of them program"
    print(f"{size}: test error {a:.1f} %, upside down {b:.1f} -> {c:.1f} % with adapters")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--file", default="model.nnopt")
    main(**vars(parser.parse_args()))
