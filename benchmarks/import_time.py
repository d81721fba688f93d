"""Processor time that `import nnopt_jax` adds to importing jax, flax and optax.

    python benchmarks/import_time.py [--processes 9]

Each figure is the median over processes that alternate between the two imports; the time of a
process is its user and system time, so that other load on the machine hardly matters. Byte code
is written once, into a temporary folder, as an installed package has it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

BASE = "import jax, flax, optax"
SECONDS = "import time; begin = time.process_time(); {}; print(time.process_time() - begin)"


def seconds(statement: str, folder: str) -> float:
    """Import in a fresh process, whose byte code lies in a folder."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", SECONDS.format(statement)]
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env=env | {"PYTHONPYCACHEPREFIX": folder},
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=9)
    count = parser.parse_args().processes
    both = f"{BASE}, nnopt_jax"
    with tempfile.TemporaryDirectory() as folder:
        seconds(both, folder)  # writes the byte code
        pairs = [(seconds(BASE, folder), seconds(both, folder)) for _ in range(count)]
    base, total = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"jax, flax, optax: {base:.2f} s; nnopt_jax adds {total - base:.2f} s (at most 0.5)")


if __name__ == "__main__":
    main()
