"""Recipes: a whole run written down, from training to the small file.

A YAML file is read into a `Recipe` (reader.py); `prepare` makes everything that it names and
checks that it fits together, before any weight moves (recipe_plan.py); the runner trains stage by
stage, with checkpoints (runner.py); packing, the file and the measurements come last
(measurement.py).
"""

from nnopt_jax.recipe.measurement import Benchmark as Benchmark, bench as bench
from nnopt_jax.recipe.metrics_log import Callback as Callback
from nnopt_jax.recipe.reader import build as build, load as load
from nnopt_jax.recipe.recipe_plan import RecipePlan as RecipePlan, prepare as prepare
from nnopt_jax.recipe.runner import run as run
from nnopt_jax.recipe.schema import (
    Call as Call,
    Distill as Distill,
    Parallel as Parallel,
    Recipe as Recipe,
    Stage as Stage,
    TransformCall as TransformCall,
    WarmStart as WarmStart,
)

_RENAMED = {
    "Bench": "Benchmark",
    "Link": "TransformCall",
    "Start": "WarmStart",
    "Watch": "Callback",
}


def __getattr__(name: str) -> object:
    """Say what became of a name."""
    if name in _RENAMED:
        raise AttributeError(f"nnopt_jax.recipe.{name} is now nnopt_jax.recipe.{_RENAMED[name]}")
    raise AttributeError(f"module 'nnopt_jax.recipe' has no attribute {name!r}")
