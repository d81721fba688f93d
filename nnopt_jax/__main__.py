"""`python -m nnopt_jax` is the command `nnopt`."""

import sys

from nnopt_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
