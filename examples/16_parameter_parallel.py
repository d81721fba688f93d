"""Parameter parallelism: sharded weights, moments and masks, pruned and rounded as on one device.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/16_parameter_parallel.py

Between steps, a device holds only its shards; weights are gathered where they are used. Afterwards,
the network runs on packed parameters, of which devices gather integers.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nnopt_jax as nnopt
from nnopt_jax import parallel
from nnopt_jax.zoo import data, lenet, losses


def gathered(forward, params, batch) -> int:
    """Return the bytes that a device receives for one batch."""
    found = parallel.collectives(forward.lower(params, batch).compile())
    return found["all-gather"].bytes if "all-gather" in found else 0


def main(steps: int) -> None:
    digits, model = data.digits(), lenet.lenet_300_100()

    def init(key):
        return model.init(key, digits.train.x[:1])["params"]

    def apply(params, images):
        return model.apply({"params": params}, images)

    key, mesh = jax.random.key(0), parallel.mesh(fsdp=-1)
    plan = parallel.specs(jax.eval_shape(init, key), mesh, least=1024)
    tx = nnopt.chain(
        nnopt.pruning.magnitude(nnopt.pruning.cubic(0.8, steps // 2 + 1), where="**/kernel"),
        nnopt.quantization.uniform(8, where="**/kernel"),
    )
    run = parallel.train_step(
        lambda params, batch: losses.cross_entropy(apply(params, batch[0]), batch[1]),
        optax.adam(optax.cosine_decay_schedule(2e-3, steps)),
        tx,
        plan=plan,
        remat=True,
    )
    state = run.init(parallel.sharded_init(init, plan)(key))  # never unsharded on any device
    rng = np.random.default_rng(0)
    for _ in range(steps):
        some = rng.integers(len(digits.train.x), size=128)
        state, _ = run(state, (digits.train.x[some], digits.train.y[some]))

    images, labels = digits.test.x[:496], jnp.asarray(digits.test.y[:496])
    dense = parallel.predict(apply, plan)
    shown = parallel.shard(tx.apply(state.params, state.state), plan)
    packed = tx.pack(state.params, state.state)
    small = parallel.specs(packed, mesh, least=1024)
    placed, forward = parallel.shard(packed, small), parallel.predict(apply, small)
    error = 100 * float(losses.error_rate(forward(placed, images), labels))
    sent = gathered(dense, shown, images), gathered(forward, placed, images)
    held = sum(run.layout.device_bytes)
    print(f"a device holds {held:,} bytes in training, and is sent {sent[0]:,} dense, {sent[1]:,} "
          f"packed; test error {error:.1f} %")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    main(**vars(parser.parse_args()))
