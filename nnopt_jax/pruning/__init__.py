"""Pruning by magnitude, by importance scores, in patterns, and at random."""

from nnopt_jax.pruning import patterns, scores
from nnopt_jax.pruning.at_random import (
    random_mask,
    rigl,
    sparse_evolution,
)
from nnopt_jax.pruning.channel_pruning import structured
from nnopt_jax.pruning.coupled import kept_units
from nnopt_jax.pruning.importance import (
    fisher,
    magnitude,
    movement,
    saliency,
    taylor,
)
from nnopt_jax.pruning.measured_once import grasp, snip, wanda
from nnopt_jax.pruning.measured_sparsity import (
    SparsityRow,
    SparsityTable,
    measure_sparsity,
)
from nnopt_jax.pruning.proximal_steps import proximal
from nnopt_jax.pruning.pruner import by_score
from nnopt_jax.pruning.regrowth import Regrow
from nnopt_jax.pruning.rewinding import rewind
from nnopt_jax.pruning.schedules import (
    cubic,
    iterative,
    one_shot,
)
from nnopt_jax.pruning.score import Score
from nnopt_jax.pruning.soft_thresholds import (
    learned_threshold,
    soft_threshold,
)

__all__ = [
    "Regrow",
    "Score",
    "SparsityRow",
    "SparsityTable",
    "by_score",
    "cubic",
    "fisher",
    "grasp",
    "iterative",
    "kept_units",
    "learned_threshold",
    "magnitude",
    "measure_sparsity",
    "movement",
    "one_shot",
    "patterns",
    "proximal",
    "random_mask",
    "rewind",
    "rigl",
    "saliency",
    "scores",
    "snip",
    "soft_threshold",
    "sparse_evolution",
    "structured",
    "taylor",
    "wanda",
]
