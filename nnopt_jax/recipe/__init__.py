"""Recipes: a whole run, from training to the small file, described in YAML.

reader.py reads a YAML file into a `Recipe`. `prepare` (recipe_plan.py) makes all objects that it
names and checks that they fit together before any weight changes. The runner (runner.py) trains
stage by stage, with checkpoints. measurement.py packs the parameters, writes the file and measures
it.
"""

from nnopt_jax.errors import former_names
from nnopt_jax.recipe.measurement import Benchmark, bench
from nnopt_jax.recipe.metrics_log import Callback
from nnopt_jax.recipe.reader import build, load
from nnopt_jax.recipe.recipe_plan import RecipePlan, prepare
from nnopt_jax.recipe.runner import run
from nnopt_jax.recipe.schema import (
    Call,
    Distill,
    Parallel,
    Recipe,
    Stage,
    TransformCall,
    WarmStart,
)

__all__ = [
    "Benchmark",
    "Call",
    "Callback",
    "Distill",
    "Parallel",
    "Recipe",
    "RecipePlan",
    "Stage",
    "TransformCall",
    "WarmStart",
    "bench",
    "build",
    "load",
    "prepare",
    "run",
]

_HERE = "nnopt_jax.recipe"
__getattr__ = former_names(
    _HERE,
    {
        "Bench": f"{_HERE}.Benchmark",
        "Link": f"{_HERE}.TransformCall",
        "Start": f"{_HERE}.WarmStart",
        "Watch": f"{_HERE}.Callback",
    },
)
