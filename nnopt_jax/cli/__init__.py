"""The command line: `nnopt run | plan | inspect | diff | bench | data`."""

from nnopt_jax.cli.command_line import main

__all__ = ["main"]
