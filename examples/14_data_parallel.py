"""Data parallelism on all devices, with a last batch that is not divisible.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/14_data_parallel.py

The batch is split by rows. The last batch of an epoch is uneven: it is padded, and the padding does
not count. Each batch runs in two halves, whose gradients are summed.
"""

import argparse
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nnopt_jax import parallel
from nnopt_jax.zoo import data, lenet, losses


def main(steps: int) -> None:
    digits, model = data.digits(), lenet.lenet_300_100()
    params = model.init(jax.random.key(0), digits.train.x[:1])["params"]
    mesh = parallel.mesh(data=-1)
    plan = parallel.specs(params, mesh)

    def loss(params, batch):
        (images, labels), weight = batch  # the weight of a padding row is 0
        logits = model.apply({"params": params}, images)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return parallel.Weighted((weight * each).sum(), weight.sum())

    def batches(size=96):
        for epoch in itertools.count():
            order = np.random.default_rng(epoch).permutation(len(digits.train.x))
            for some in np.split(order, range(size, len(order), size)):
                yield digits.train.x[some], digits.train.y[some]

    run = parallel.train_step(loss, optax.adam(1e-3), plan=plan, accumulate=2)
    state = run.init(params)
    fed = parallel.feed(itertools.islice(batches(), steps), mesh, uneven="pad")
    for batch in fed:
        state, value = run(state, batch)

    forward = parallel.predict(lambda params, x: model.apply({"params": params}, x), plan)
    logits = forward(state.params, digits.test.x)
    error = 100 * float(losses.error_rate(logits, jnp.asarray(digits.test.y)))
    lowered = run.lower(state, batch).compile()
    told = {kind: one.count for kind, one in parallel.collectives(lowered).items()}
    print(f"{mesh.size} devices, a step says {told}; loss {value:.3f}, test error {error:.1f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    main(**vars(parser.parse_args()))
