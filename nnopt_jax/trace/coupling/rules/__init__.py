"""What each primitive does with labels, and how it runs without the removed units."""

from typing import Any

from nnopt_jax.trace.coupling.elementwise import ELEMENTWISE
from nnopt_jax.trace.coupling.reading import Rule
from nnopt_jax.trace.coupling.rules.contractions import CONTRACTIONS
from nnopt_jax.trace.coupling.rules.derivatives import DERIVATIVES
from nnopt_jax.trace.coupling.rules.indexing import INDEXING
from nnopt_jax.trace.coupling.rules.moves import MOVES
from nnopt_jax.trace.coupling.rules.programs import PROGRAMS
from nnopt_jax.trace.coupling.rules.reductions import REDUCTIONS

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
