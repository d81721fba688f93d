"""Model parallelism: a transformer with pipelined blocks, and with split heads and hidden units.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/15_model_parallel.py

The pipeline has two stages of two blocks each. Within a stage, attention heads and hidden units are
split over two devices, and each half of a batch has its own four devices. Embedding and head are
outside of the pipeline.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nnopt_jax import parallel
from nnopt_jax.zoo import data, losses
from nnopt_jax.zoo.transformer import Transformer

RULES = [
    ("stages/attention/out/kernel", (None, "stage", None, "model")),
    ("stages/attention/*/kernel", (None, "stage", None, None, "model")),
    ("stages/up/kernel", (None, "stage", None, None, "model")),
    ("stages/up/bias", (None, "stage", None, "model")),
    ("stages/down/kernel", (None, "stage", None, "model")),
    ("stages/**", (None, "stage")),
]


def main(steps: int) -> None:
    digits = data.digits()
    model = Transformer(inputs=28, classes=10, layers=4)
    ways = {name: 2 if jax.device_count() % 8 == 0 else 1 for name in ("data", "stage", "model")}
    mesh = parallel.mesh(devices=jax.devices()[: ways["data"] ** 3], **ways)

    outer = model.init(jax.random.key(0))
    blocks = [outer.pop(f"block_{i}") for i in range(model.layers)]
    params = {"outer": outer, "stages": parallel.stack_stages(blocks, stages=ways["stage"])}
    plan = parallel.specs(params, mesh, RULES)
    print(plan)

    through = parallel.pipeline(model.block, mesh, microbatches=4)

    def apply(params, images):
        hidden = through(params["stages"], model.embed(params["outer"], images))
        return model.head(params["outer"], hidden)

    def loss(params, batch):
        images, labels = batch
        return losses.cross_entropy(apply(params, images), labels)

    run = parallel.train_step(loss, optax.adam(optax.cosine_decay_schedule(2e-3, steps)), plan=plan)
    state, rng = run.init(params), np.random.default_rng(0)
    for _ in range(steps):
        some = rng.integers(len(digits.train.x), size=64)
        state, value = run(state, (digits.train.x[some], digits.train.y[some]))

    logits = parallel.predict(apply, plan)(state.params, digits.test.x[:496])
    error = 100 * float(losses.error_rate(logits, jnp.asarray(digits.test.y[:496])))
    wait = 100 * parallel.bubble(ways["stage"], 4)
    print(f"loss {value:.3f}, test error {error:.1f} %, stages wait {wait:.0f} % of the time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    main(**vars(parser.parse_args()))
