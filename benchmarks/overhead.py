"""What a transform costs in the jitted training step, beside the plain step and beside qwix.

    python benchmarks/overhead.py [--models mlp,cnn,transformer] [--rounds 30]

The qwix row needs `pip install qwix` (measured with 0.1.8) and is left out without it.

Every row is a whole step, Adam included, compiled once, its carry donated. A round gives each row
in turn, in random order, ten steps, so that a mask refreshed every ten is refreshed once. Printed
is the median over the rounds of the ratio to the same round's plain step, with its quartiles, by
two clocks: `cpu` counts the processor time of this process, which other programs on the machine
disturb least; `wall` is what passes. "plain again" is the plain step under another name: how far it
is from 1 tells what to believe of the others. On a busy machine one thread on one core is steadier:

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 1 python benchmarks/overhead.py
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from models import Case, cases
from rich.console import Console
from rich.table import Table

import nnopt_jax as nnopt

STEPS = 10
OPTIMIZER = optax.adam(1e-3)
KERNELS = "**/kernel"
Step = Callable[[Any, Any], Any]


def plain(case: Case) -> tuple[Step, Any]:
    """The step without a transform: `(carry, batch) -> carry`, and the first carry."""

    def step(carry: Any, batch: Any) -> Any:
        params, opt_state = carry
        _, grads = jax.value_and_grad(case.loss)(params, batch)
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params = case.initial()
    return step, (params, OPTIMIZER.init(params))


def transformed(
    make: Callable[[], nnopt.Transform], case: Case, packed: bool = False
) -> tuple[Step, Any]:
    """The loop of the README; of a loss that takes packed leaves, where it is told so."""
    params = case.initial()
    tx = make().bind(nnopt.graph(case.loss, params, case.batch))
    loss = nnopt.on_packed(case.loss) if packed else case.loss

    def step(carry: Any, batch: Any) -> Any:
        params, state, opt_state = carry
        _, grads = nnopt.value_and_grad(loss, tx)(params, state, batch)
        movable = nnopt.trainable(tx, params, state)
        updates, opt_state = OPTIMIZER.update(grads.train, opt_state, movable)
        params, state = nnopt.step(tx, params, state, updates, grads)
        return params, state, opt_state

    state = tx.init(params)
    return step, (params, state, OPTIMIZER.init(nnopt.trainable(tx, params, state)))


def qwix(case: Case) -> tuple[Step, Any]:
    """8-bit weights, one scale an output channel, rounded in each forward pass."""
    import qwix as library

    rule = library.QtRule(module_path=".*", weight_qtype="int8")
    model = library.quantize_model(case.model, library.QtProvider([rule]))
    return plain(case._replace(model=model))


def magnitude(every: int | None, mode: Any) -> Callable[[Case], tuple[Step, Any]]:
    make = functools.partial(nnopt.pruning.magnitude, 0.9, where=KERNELS, every=every, mode=mode)
    return functools.partial(transformed, make)


def scored(method: Callable[..., nnopt.Transform]) -> Callable[[Case], tuple[Step, Any]]:
    """By gradients, which a schedule that starts at zero does not need before the first step."""
    schedule = nnopt.pruning.one_shot(0.9, 1)
    return functools.partial(transformed, functools.partial(method, schedule, where=KERNELS))


def int8(every: int) -> Callable[[Case], tuple[Step, Any]]:
    uniform = nnopt.quantization.uniform
    make = functools.partial(uniform, 8, where=KERNELS, granularity="channel", every=every)
    return functools.partial(transformed, make)


def activations(every: int) -> Callable[[Case], tuple[Step, Any]]:
    """8-bit weights and activations; products are those of int8 where the library so chooses."""
    uniform, both = nnopt.quantization.uniform, nnopt.quantization.quantize_activations

    def make() -> nnopt.Transform:
        weights = uniform(8, where=KERNELS, granularity="channel", every=every)
        return nnopt.chain(weights, both(8, where=KERNELS))

    return functools.partial(transformed, make, packed=True)


ROWS: dict[str, Callable[[Case], tuple[Step, Any]]] = {
    "plain": plain,
    "plain again": plain,
    "mask in update": magnitude(None, "hard"),
    "mask chosen every 10": magnitude(10, "hard"),
    "mask chosen every step": magnitude(1, "hard"),
    "mask chosen every step, movement": scored(nnopt.pruning.movement),
    "mask chosen every step, taylor": scored(nnopt.pruning.taylor),
    "mask in forward": magnitude(None, "soft"),
    "int8 weights": int8(1),
    "int8 range every 10": int8(10),
    "int8 weights and activations": activations(1),
    "int8 both, range every 10": activations(10),
    "qwix int8 weights": qwix,
}


class Timed:
    """A compiled step, its carry, and the seconds that each round took."""

    def __init__(self, make: Callable[[Case], tuple[Step, Any]], case: Case) -> None:
        step, carry = make(case)
        self.carry = jax.tree.map(lambda x: x.copy(), carry)  # donation needs buffers of its own
        self.batch = case.batch
        self.step = jax.jit(step, donate_argnums=0).lower(self.carry, self.batch).compile()
        self.seconds: list[tuple[float, float]] = []

    def round(self) -> None:
        """Makes the steps of one round."""
        start = time.process_time(), time.perf_counter()
        for _ in range(STEPS):
            self.carry = self.step(self.carry, self.batch)
        jax.block_until_ready(self.carry)
        end = time.process_time(), time.perf_counter()
        self.seconds.append((end[0] - start[0], end[1] - start[1]))


def measure(case: Case, rows: list[str], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each row, of shape (rounds, 2): by the processor, by the wall."""
    timed = {name: Timed(ROWS[name], case) for name in rows}
    order = np.random.default_rng(0)
    for number in range(rounds + 1):
        for name in order.permutation(rows):
            timed[name].round()
            if number == 0:
                timed[name].seconds.clear()  # warm-up
    return {name: np.array(row.seconds) for name, row in timed.items()}


def table(title: str, seconds: dict[str, np.ndarray]) -> Table:
    """One line a row: medians of the ratios within rounds."""
    out = Table("step", "cpu ms", "cpu / plain", "quartiles", "wall / plain", title=title)
    against = seconds.get("qwix int8 weights")
    if against is not None:
        out.add_column("cpu / qwix")
        out.add_column("wall / qwix")
    for name, row in seconds.items():
        ratio = row / seconds["plain"]
        cpu, wall = np.median(ratio, axis=0)
        low, high = np.quantile(ratio[:, 0], (0.25, 0.75))
        cells = [f"{np.median(row[:, 0]) * 1e3 / STEPS:.2f}", f"{cpu:.3f}",
                 f"{low:.3f} - {high:.3f}", f"{wall:.3f}"]  # fmt: skip
        if against is not None:
            cells += [f"{median:.3f}" for median in np.median(row / against, axis=0)]
        out.add_row(name, *cells)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mlp,cnn,transformer", help="which networks")
    parser.add_argument("--rows", help="which rows, by parts of their names; default: all")
    parser.add_argument("--rounds", type=int, default=30, help="rounds of ten steps each")
    options = parser.parse_args()
    # Steps with a branch ran 1.4 times as long when jaxlib 0.10.2 had read them from a cache.
    jax.config.update("jax_enable_compilation_cache", False)
    rows = [name for name in ROWS if name == "plain" or _wanted(name, options.rows)]
    console = Console(width=110)
    if importlib.util.find_spec("qwix") is None and "qwix int8 weights" in rows:
        rows.remove("qwix int8 weights")
        console.print("No qwix row: it is not installed (pip install qwix).")
    console.print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, Adam, "
                  f"{options.rounds} rounds of {STEPS} steps")  # fmt: skip
    for name in options.models.split(","):
        console.print(table(name, measure(cases()[name], rows, options.rounds)))


def _wanted(name: str, parts: str | None) -> bool:
    return parts is None or any(part.strip() in name for part in parts.split(","))


if __name__ == "__main__":
    main()
