"""Parallelism: data, model and parameter partitioning over meshes of devices."""

from nnopt_jax.parallel.batches import feed, pad_batch, process_rows, shard_batch
from nnopt_jax.parallel.collective_report import Traffic, collectives
from nnopt_jax.parallel.gradients import Weighted
from nnopt_jax.parallel.meshes import mesh
from nnopt_jax.parallel.pipelines import bubble, pipeline, stack_stages, unstack_stages
from nnopt_jax.parallel.prediction import Predict, predict
from nnopt_jax.parallel.processes import distributed
from nnopt_jax.parallel.shard_specs import ShardRow, Shards, shard, sharded_init, specs
from nnopt_jax.parallel.step import TrainStep, train_step
from nnopt_jax.parallel.train_state import Layout, TrainState

__all__ = [
    "Layout", "Predict", "ShardRow", "Shards", "Traffic", "TrainState", "TrainStep", "Weighted",
    "bubble", "collectives", "distributed", "feed", "mesh", "pad_batch", "pipeline", "predict",
    "process_rows", "shard", "shard_batch", "sharded_init", "specs", "stack_stages", "train_step",
    "unstack_stages",
]  # fmt: skip
