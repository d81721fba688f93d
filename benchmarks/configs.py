"""Runs the recipes of the project and compares what they print with what their headers say.

    python benchmarks/configs.py                  # all of configs/: about half an hour on two cores
    python benchmarks/configs.py rigl snip        # those whose path holds one of these words
    python benchmarks/configs.py --write rigl     # puts the figures into the header

Those of configs/parallel are for eight devices, and left out where there are fewer:
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/configs.py parallel

Errors and bytes move a little with the number of threads, seconds with the machine.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import tempfile
import time

import jax

from nnopt_jax import recipe

ROOT = pathlib.Path(__file__).parents[1]


def told(path: pathlib.Path) -> str:
    """Runs a recipe; the line that belongs into its header."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        made = recipe.load(path, [f"output={folder}/run"])
        measures = {measure.name: measure for measure in recipe.run(made).measures}
        seconds = time.perf_counter() - began
    error, disk = measures["test error"], measures["on disk"]
    dense = "" if error.before is None else f"{error.before:.2f} % dense, "
    ratio = disk.before / disk.after
    return (
        f"# prints: test error {dense}{error.after:.2f} % packed; {disk.before:,.0f} bytes to "
        f"{disk.after:,.0f} ({ratio:.1f}x), {seconds:.0f} s."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of paths; default: all")
    parser.add_argument("--write", action="store_true", help="update the headers")
    options = parser.parse_args()
    for path in sorted((ROOT / "configs").glob("**/*.yaml")):
        name = str(path.relative_to(ROOT))
        if options.names and not any(part in name for part in options.names):
            continue
        if path.parent.name == "parallel" and jax.device_count() < 8:
            print(f"{name}\n  left out: {jax.device_count()} devices, wanted 8")
            continue
        text, line = path.read_text(), told(path)
        header = re.search(r"^# prints: test error.*$", text, re.MULTILINE)
        assert header is not None, f"{name} says nothing of what it prints"
        print(f"{name}\n  said  {header[0]}\n  got   {line}", flush=True)
        if options.write:
            path.write_text(text.replace(header[0], line))


if __name__ == "__main__":
    main()
