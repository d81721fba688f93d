"""Parallelism: data, model and parameter partitioning over meshes of devices."""

from nnopt_jax.parallel.batches import (
    feed as feed,
    pad_batch as pad_batch,
    process_rows as process_rows,
    shard_batch as shard_batch,
)
from nnopt_jax.parallel.collective_report import Traffic as Traffic, collectives as collectives
from nnopt_jax.parallel.gradients import Weighted as Weighted
from nnopt_jax.parallel.meshes import mesh as mesh
from nnopt_jax.parallel.pipelines import (
    bubble as bubble,
    pipeline as pipeline,
    stack_stages as stack_stages,
    unstack_stages as unstack_stages,
)
from nnopt_jax.parallel.prediction import Predict as Predict, predict as predict
from nnopt_jax.parallel.processes import distributed as distributed
from nnopt_jax.parallel.shard_specs import ShardRow as ShardRow, Shards as Shards, specs as specs
from nnopt_jax.parallel.sharding import shard as shard, sharded_init as sharded_init
from nnopt_jax.parallel.step import TrainStep as TrainStep, train_step as train_step
from nnopt_jax.parallel.train_state import Layout as Layout, TrainState as TrainState
