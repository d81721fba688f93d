"""What each primitive does with a packed leaf."""

from nnopt_jax.trace.rules.contraction import Dense as Dense
from nnopt_jax.trace.rules.steps import step as step
