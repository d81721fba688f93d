"""Pruning by magnitude, by importance scores, in patterns, and at random."""

from nnopt_jax.pruning import patterns as patterns, scores as scores
from nnopt_jax.pruning.at_random import (
    random_mask as random_mask,
    rigl as rigl,
    sparse_evolution as sparse_evolution,
)
from nnopt_jax.pruning.channel_pruning import structured as structured
from nnopt_jax.pruning.coupled import kept_units as kept_units
from nnopt_jax.pruning.importance import (
    fisher as fisher,
    magnitude as magnitude,
    movement as movement,
    saliency as saliency,
    taylor as taylor,
)
from nnopt_jax.pruning.measured_once import grasp as grasp, snip as snip, wanda as wanda
from nnopt_jax.pruning.measured_sparsity import (
    SparsityRow as SparsityRow,
    SparsityTable as SparsityTable,
    measure_sparsity as measure_sparsity,
)
from nnopt_jax.pruning.proximal_steps import proximal as proximal
from nnopt_jax.pruning.pruner import by_score as by_score
from nnopt_jax.pruning.regrowth import Regrow as Regrow
from nnopt_jax.pruning.rewinding import rewind as rewind
from nnopt_jax.pruning.schedules import (
    cubic as cubic,
    iterative as iterative,
    one_shot as one_shot,
)
from nnopt_jax.pruning.score import Score as Score
from nnopt_jax.pruning.soft_thresholds import (
    learned_threshold as learned_threshold,
    soft_threshold as soft_threshold,
)
