"""What each primitive does with labels, and how it runs without the removed units."""

from typing import Any

from nnopt_jax.trace.groups.elementwise import ELEMENTWISE
from nnopt_jax.trace.groups.reading import Rule
from nnopt_jax.trace.groups.rules.contractions import CONTRACTIONS
from nnopt_jax.trace.groups.rules.derivatives import DERIVATIVES
from nnopt_jax.trace.groups.rules.indexing import INDEXING
from nnopt_jax.trace.groups.rules.moves import MOVES
from nnopt_jax.trace.groups.rules.programs import PROGRAMS
from nnopt_jax.trace.groups.rules.reductions import REDUCTIONS

RULES: dict[Any, Rule] = {
    **ELEMENTWISE,
    **MOVES,
    **CONTRACTIONS,
    **REDUCTIONS,
    **INDEXING,
    **PROGRAMS,
    **DERIVATIVES,
}
"""All of them, by primitive."""
