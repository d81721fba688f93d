"""Processor time that `import nnopt_jax` adds to importing jax, flax and optax.

    python benchmarks/import_time.py [--processes 9]

Each figure is the median over processes that alternate between the two imports; the time of a
process is its user and system time, so that other load on the machine hardly matters.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

BASE = "import jax, flax, optax"
SECONDS = "import time; begin = time.process_time(); {}; print(time.process_time() - begin)"


def seconds(statement: str) -> float:
    """Import in a fresh process."""
    command = [sys.executable, "-c", SECONDS.format(statement)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=9)
    count = parser.parse_args().processes
    seconds(f"{BASE}, nnopt_jax")  # writes byte code
    pairs = [(seconds(BASE), seconds(f"{BASE}, nnopt_jax")) for _ in range(count)]
    base, both = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"jax, flax, optax: {base:.2f} s; nnopt_jax adds {both - base:.2f} s (at most 0.5)")


if __name__ == "__main__":
    main()
