"""The command line: `nnopt run | plan | inspect | diff | data`."""

from nnopt_jax.cli.main import main as main
