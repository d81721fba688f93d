"""Run the command `nnopt` as `python -m nnopt_jax`."""

import sys

from nnopt_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
