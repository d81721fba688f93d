"""Recipes: a whole run written down, from training to the small file."""

from nnopt_jax.recipe.bench import Bench as Bench, bench as bench
from nnopt_jax.recipe.load import build as build, load as load
from nnopt_jax.recipe.run import run as run
from nnopt_jax.recipe.schema import (
    Call as Call,
    Distill as Distill,
    Link as Link,
    Parallel as Parallel,
    Recipe as Recipe,
    Stage as Stage,
    Start as Start,
)
from nnopt_jax.recipe.watch import Watch as Watch
