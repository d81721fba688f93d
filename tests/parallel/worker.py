"""One process of a distributed run: trains, saves, goes on from where it was.

The tests start it as `python -m tests.parallel.worker '{...}'`; see `Job`.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import nnopt_jax as nnopt
from nnopt_jax import parallel
from nnopt_jax.errors import ProcessLostError
from nnopt_jax.interop import Checkpoints
from nnopt_jax.zoo.transformer import Transformer

MODEL = Transformer(
    inputs=32, classes=32, width=16, heads=4, hidden=32, layers=1, length=8, causal=True
)
ROWS = 8
RULES = [
    ("**/attention/out/kernel", ("model",)),
    ("**/attention/*/kernel", (None, "model")),
    ("**/up/kernel", (None, "model")),
    ("**/down/kernel", ("model",)),
]


class Job(NamedTuple):
    """What a worker is to do."""

    folder: str
    axes: dict[str, int]
    steps: int
    coordinator: str | None = None
    processes: int = 1
    process: int = 0
    every: int = 1
    pause: float = 0.0
    linger: float = 0.0


def loss(params, batch, key):
    logits = MODEL(params, batch["x"])
    logits += 0.1 * jax.random.normal(key, logits.shape)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


def rows_of_step(step, rows):
    """The rows that this process reads."""
    x = np.random.default_rng(step).integers(0, 32, (ROWS, MODEL.length), np.int32)[rows]
    return {"x": x, "y": np.roll(x, -1, 1)}


def build(axes, devices=None):
    """The step, and parameters to start from."""
    mesh = parallel.mesh(devices=devices, **axes)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    plan = parallel.specs(shapes, mesh, RULES if "model" in axes else [], least=0)
    prune = nnopt.pruning.magnitude(0.5, where="**/up/kernel")  # one: each costs a compilation
    tx = nnopt.chain(prune, nnopt.quantization.uniform(8))
    run = parallel.train_step(loss, optax.adamw(1e-2), tx, plan=plan)
    return run, lambda: run.init(parallel.sharded_init(MODEL.init, plan)(jax.random.key(0)))


def saved(run):
    """What a checkpoint holds."""
    everywhere = NamedSharding(run.plan.mesh, PartitionSpec())
    key = jax.eval_shape(lambda: jax.random.key(0))
    return {
        "state": run.abstract,
        "key": jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere),
    }


def train(job, say=lambda **_: None, devices=None):
    """Goes on from the newest checkpoint; returns the state and the losses by step."""
    run, start = build(job.axes, devices)
    mesh, losses = run.plan.mesh, {}
    rows = parallel.process_rows(ROWS, mesh)
    with Checkpoints(job.folder) as checkpoints:
        done = checkpoints.latest()
        state, key = start(), jax.random.key(7)
        if done is not None:
            restored, _ = checkpoints.restore(saved(run))
            state, key = restored["state"], restored["key"]
        for step in range(done or 0, job.steps):
            batch = parallel.shard_batch(rows_of_step(step, rows), mesh)
            key, own = jax.random.split(key)
            state, value = run(state, batch, key=own)
            losses[step] = float(value)
            say(step=step, loss=losses[step])
            if (step + 1) % job.every == 0:
                say(saving=step + 1)
                checkpoints.save(step + 1, {"state": state, "key": key})
            time.sleep(job.pause)
    return state, losses


def main():
    job = Job(**json.loads(sys.argv[1]))
    log = pathlib.Path(job.folder + f".log{job.process}")
    several = (
        parallel.distributed(
            job.coordinator, processes=job.processes, process=job.process, heartbeat=10
        )
        if job.processes > 1
        else contextlib.nullcontext()
    )

    def say(**words):
        with log.open("a") as file:
            file.write(json.dumps(words) + "\n")

    try:
        with several:
            train(job, say)
            say(done=True)
            time.sleep(job.linger * job.process)
    except ProcessLostError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
