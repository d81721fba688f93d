"""The command line: `nnopt run | plan | inspect | diff | bench | data`."""

from nnopt_jax.cli.main import main as main
