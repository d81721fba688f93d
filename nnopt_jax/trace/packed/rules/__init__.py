"""What each primitive does with a packed leaf."""

from nnopt_jax.trace.packed.rules.contraction import Dense as Dense
from nnopt_jax.trace.packed.rules.steps import step as step
