"""Recipes: a whole run, from training to the small file, described in YAML.

reader.py reads a YAML file into a `Recipe`. `prepare` (recipe_plan.py) makes all objects that it
names and checks that they fit together before any weight changes. The runner (runner.py) trains
stage by stage, with checkpoints. measurement.py packs the parameters, writes the file and measures
it.
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
    """Raise an error, which states the new name if the class was renamed."""
    if name in _RENAMED:
        raise AttributeError(f"nnopt_jax.recipe.{name} is now nnopt_jax.recipe.{_RENAMED[name]}")
    raise AttributeError(f"module 'nnopt_jax.recipe' has no attribute {name!r}")
