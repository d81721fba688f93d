"""Pruning: by sparsity, by importance, at random."""

from nnopt_jax.pruning.importance.fisher import fisher as fisher
from nnopt_jax.pruning.importance.grasp import grasp as grasp
from nnopt_jax.pruning.importance.magnitude import magnitude as magnitude
from nnopt_jax.pruning.importance.movement import movement as movement
from nnopt_jax.pruning.importance.saliency import saliency as saliency
from nnopt_jax.pruning.importance.snip import snip as snip
from nnopt_jax.pruning.importance.taylor import taylor as taylor
from nnopt_jax.pruning.random.random_mask import random_mask as random_mask
from nnopt_jax.pruning.random.rigl import rigl as rigl
from nnopt_jax.pruning.random.sparse_evolution import sparse_evolution as sparse_evolution
from nnopt_jax.pruning.rewind import rewind as rewind
from nnopt_jax.pruning.schedules import (
    cubic as cubic,
    iterative as iterative,
    one_shot as one_shot,
)
from nnopt_jax.pruning.sparsity.learned_threshold import learned_threshold as learned_threshold
from nnopt_jax.pruning.sparsity.measured import (
    SparsityRow as SparsityRow,
    SparsityTable as SparsityTable,
    measure_sparsity as measure_sparsity,
)
from nnopt_jax.pruning.sparsity.proximal import proximal as proximal
from nnopt_jax.pruning.sparsity.soft_threshold import soft_threshold as soft_threshold
from nnopt_jax.pruning.units import kept_units as kept_units, structured as structured
