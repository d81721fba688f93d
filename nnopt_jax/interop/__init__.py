"""The world outside: one file for each library or format, each imported only when used."""

from nnopt_jax.interop.orbax import Checkpoints as Checkpoints
