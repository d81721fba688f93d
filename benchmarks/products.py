"""Products with packed weights against dense float32, and the forms that the library chooses.

    python benchmarks/products.py [--sizes 1024,4096] [--rows 1,8,32,256] [--forms int8,low]

A number is how many times as fast a product is as the better of `x @ w` in float32 with the weight
stored (in, out) and (out, in): the ratio of the medians over rounds in which all forms take turns
in one process, and after the stroke that of the least times. Forms that end on "turned" are
prepacked by `nnopt.prepack`; "as integers" and "as floats" are told which they are to be, and a
star marks the one that the library chooses there by its table
(nnopt_jax/arrays/products/dispatch.py), which is made from what this prints.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
from interleave import Timing, interleave
from rich.console import Console
from rich.table import Table

import nnopt_jax as nnopt
from nnopt_jax.arrays import ELL, BlockELL, Sparse, input_quantized
from nnopt_jax.arrays.products import integer_products
from nnopt_jax.arrays.products.dispatch import prefer_ell, use_int8

Make = Callable[[jax.Array], Any]
DENSE = ("dense (in, out)", "dense (out, in)")


def by(*links: nnopt.Transform) -> Make:
    """What transforms make of a weight."""
    tx = nnopt.chain(*links)
    return lambda w: tx.pack({"w": w}, tx.init({"w": w}))["w"]


def turned(make: Make) -> Make:
    """The same, prepacked for products."""
    return lambda w: nnopt.prepack({"w": make(w)}, where="w")["w"]


def grid(bits: int) -> nnopt.Transform:
    return nnopt.quantization.uniform(bits, granularity="channel")


ROUND = nnopt.quantization.quantize_activations(8)
EITHER: dict[str, Make] = {
    "int8, activations too": by(grid(8), ROUND),
    "int8, activations too, turned": turned(by(grid(8), ROUND)),
    "int8 weights": by(grid(8)),
    "int8 weights, turned": turned(by(grid(8))),
    "int4, activations too, turned": turned(by(grid(4), ROUND)),
    "int4 weights, turned": turned(by(grid(4))),
}
"""Forms that are integers or floats."""

ONE: dict[str, Make] = {
    "low rank, a quarter": lambda w: nnopt.arrays.Factored(
        w[:, : w.shape[0] // 4], w[: w.shape[0] // 4]
    ),
    "structured, half the outputs": lambda w: w[:, ::2].copy(),
    "low rank, turned": turned(
        lambda w: nnopt.arrays.Factored(w[:, : w.shape[0] // 4], w[: w.shape[0] // 4])
    ),
    "structured, turned": turned(lambda w: w[:, ::2].copy()),
    "codebook of 16": by(nnopt.compression.codebook(16)),
    "sparse, 90 %": by(nnopt.pruning.magnitude(0.9)),
    **{
        f"sparse, {part} %, prepacked": turned(by(nnopt.pruning.magnitude(part / 100)))
        for part in (85, 90, 95, 99)
    },
    **{
        f"blocks of {n}, {part} %, prepacked": turned(
            by(nnopt.pruning.magnitude(part / 100, pattern=(n, n)))
        )
        for n in (8, 32)
        for part in (50, 75, 90)
    },
}
"""Forms of which there is one."""


@contextlib.contextmanager
def told(integers: bool | None) -> Iterator[None]:
    """Takes the choice from the table."""
    say = mock.Mock(return_value=integers)
    with contextlib.ExitStack() as stack:
        if integers is not None:
            stack.enter_context(mock.patch.object(input_quantized, "use_int8", say))
            stack.enter_context(mock.patch.object(integer_products, "use_int8", say))
        yield


def compiled(packed: Any, x: jax.Array, integers: bool | None = None) -> Callable[[], Any]:
    with told(integers):
        run = jax.jit(nnopt.on_packed(lambda w, x: x @ w)).lower(packed, x).compile()
    return lambda: run(packed, x)


def is_chosen(packed: Any) -> bool:
    """Whether `prepack(..., dense=True)` makes lists of what these are lists of."""
    if isinstance(packed, ELL):
        part = len(packed.indices) / packed.shape[0]
        return prefer_ell(packed.size, part, blocks=False)
    if isinstance(packed, BlockELL):
        part = math.prod(packed.values.shape[2:]) / packed.shape[0]
        return prefer_ell(packed.size, part, blocks=True)
    return not isinstance(packed, Sparse)


def measure(rows: int, size: int, forms: str | None, rounds: int) -> dict[str, tuple[Timing, bool]]:
    """Times all forms in turns; and whether the library chooses them."""
    x = jax.random.normal(jax.random.key(0), (rows, size))
    w = jax.random.normal(jax.random.key(1), (size, size)) / size**0.5
    flipped = jax.jit(lambda x, w: jax.lax.dot_general(x, w, (((1,), (1,)), ((), ()))))
    timed = {DENSE[0]: compiled(w, x), DENSE[1]: lambda: flipped(x, w)}
    chosen = dict.fromkeys(DENSE, False)
    for name, make in (EITHER | ONE).items():
        if forms is not None and not any(part in name for part in forms.split(",")):
            continue
        packed = jax.jit(make)(w) if name in EITHER else make(w)
        if name in ONE:
            timed[name], chosen[name] = compiled(packed, x), is_chosen(packed)
            continue
        for integers in (True, False):
            label = f"{name}, as {'integers' if integers else 'floats'}"
            timed[label] = compiled(packed, x, integers)
            use = use_int8(rows, size, size, split="weights" in name)
            chosen[label] = use is integers
    times = interleave(timed, rounds=rounds, budget=20)
    return {name: (timing, chosen[name]) for name, timing in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1024,4096", help="inputs, and as many outputs")
    parser.add_argument("--rows", default="1,8,32,256")
    parser.add_argument("--forms", help="parts of names; default: all")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    shapes = [(int(m), int(k)) for k in options.sizes.split(",") for m in options.rows.split(",")]
    found = {s: measure(*s, options.forms, options.rounds) for s in shapes}
    table = Table("times as fast", *(f"{m} x {k}" for m, k in shapes))
    base = {
        s: tuple(min(getattr(times[name][0], key) for name in DENSE) for key in ("median", "best"))
        for s, times in found.items()
    }
    table.add_row("dense, ms", *(f"{1e3 * base[s][0]:.2f}" for s in shapes))
    for name in found[shapes[0]]:
        cells = []
        for s in shapes:
            timing, chosen = found[s][name]
            cells.append(f"{base[s][0] / timing.median:.2f}/{base[s][1] / timing.best:.2f}"
                         f"{'*' if chosen else ' '}")  # fmt: skip
        table.add_row(name, *cells)
    console = Console(width=42 + 13 * len(shapes))
    console.print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")
    console.print(table)


if __name__ == "__main__":
    main()
