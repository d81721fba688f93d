"""A checkpoint of a training state of 135 million parameters, over one that orbax writes alone.

    python benchmarks/checkpoint.py [--layers 30] [--rounds 5]

The state is that of pruning by magnitude under Adam: parameters, masks and two moments, for a Llama
of the sizes of SmolLM2-135M. `Checkpoints` adds a checksum and a finiteness test of every leaf
and a manifest. Orbax alone writes the same arrays synchronously. Both write and read in turns in
one process; times are wall seconds, medians and minima, beside the ratio of medians.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

import nnopt_jax as nnopt
from nnopt_jax.interop import Checkpoints
from nnopt_jax.parallel import TrainState
from nnopt_jax.zoo.llama import Llama


def training_state(layers: int) -> TrainState:
    model = Llama(49152, 576, layers, 9, 3, 1536)
    params = jax.jit(model.init)(jax.random.key(0))
    tx, optimizer = nnopt.pruning.magnitude(0.5), optax.adam(1e-3)
    state = tx.init(params)
    moments = jax.jit(optimizer.init)(nnopt.trainable(tx, params, state))
    drawn = iter(jax.random.split(jax.random.key(1), 10_000))

    def like_trained(x: jax.Array) -> jax.Array:
        return x if x.ndim == 0 else 1e-3 * jax.random.normal(next(drawn), x.shape, x.dtype)

    moments = jax.tree.map(like_trained, moments)  # moments of zeros would be compressed
    return TrainState(params, state, moments)


def folder_bytes(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = jax.block_until_ready(call())
    return time.perf_counter() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=30, help="blocks of the model")
    parser.add_argument("--rounds", type=int, default=5, help="checkpoints of each kind")
    args = parser.parse_args()
    state = training_state(args.layers)
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    times: dict[str, list[float]] = {name: [] for name in ("write", "orbax", "read", "orbax read")}
    nbytes = {}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        with Checkpoints(root / "ours", keep=1) as ours, ocp.StandardCheckpointer() as plain:
            for number in range(args.rounds):
                at = root / "orbax"

                def write(at: pathlib.Path = at) -> None:
                    plain.save(at, state, force=True)
                    plain.wait_until_finished()

                times["write"].append(timed(lambda number=number: ours.save(number, state))[0])
                times["orbax"].append(timed(write)[0])
                seconds, (found, _) = timed(lambda: ours.restore(shapes))
                times["read"].append(seconds)
                seconds, other = timed(lambda at=at: plain.restore(at, shapes))
                times["orbax read"].append(seconds)
                for a, b, c in zip(*map(jax.tree.leaves, (found, other, state)), strict=True):
                    np.testing.assert_array_equal(a, c)
                    np.testing.assert_array_equal(b, c)
                nbytes = {"ours": folder_bytes(root / "ours"), "orbax": folder_bytes(at)}
    table = Table(
        "", "ours", "orbax", "ratio", box=MARKDOWN, title=f"{size / 1e6:,.0f} MB of arrays"
    )
    for name, mine, base in (("write, s", "write", "orbax"), ("read, s", "read", "orbax read")):
        cells = [
            f"{statistics.median(times[key]):.2f} ({min(times[key]):.2f})" for key in (mine, base)
        ]
        table.add_row(
            name, *cells, f"{statistics.median(times[mine]) / statistics.median(times[base]):.2f}"
        )
    table.add_row("bytes", *(f"{nbytes[key]:,}" for key in ("ours", "orbax")),
                  f"{nbytes['ours'] / nbytes['orbax']:.4f}")  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
