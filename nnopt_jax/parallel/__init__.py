"""Parallelism: data, model and parameter partitioning over meshes of devices."""

from nnopt_jax.parallel.collectives import Traffic as Traffic, collectives as collectives
from nnopt_jax.parallel.data import (
    feed as feed,
    pad_batch as pad_batch,
    process_rows as process_rows,
    shard_batch as shard_batch,
)
from nnopt_jax.parallel.distributed import distributed as distributed
from nnopt_jax.parallel.gradient import Weighted as Weighted
from nnopt_jax.parallel.layout import Layout as Layout, TrainState as TrainState
from nnopt_jax.parallel.mesh import mesh as mesh
from nnopt_jax.parallel.model.pipeline import (
    bubble as bubble,
    pipeline as pipeline,
    stack_stages as stack_stages,
    unstack_stages as unstack_stages,
)
from nnopt_jax.parallel.predict import Predict as Predict, predict as predict
from nnopt_jax.parallel.shard import shard as shard, sharded_init as sharded_init
from nnopt_jax.parallel.specs import ShardRow as ShardRow, Shards as Shards, specs as specs
from nnopt_jax.parallel.step import TrainStep as TrainStep, train_step as train_step
