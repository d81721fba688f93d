"""What a call of a small compiled step costs, over the same step of `jax.jit` with shardings.

    python benchmarks/dispatch.py [--rounds 200]

Networks of 4 and 100 matrices of 8 x 8 under Adam, on one device: the work is small, so the time is
that of the call. Both steps run in turns in one process; `ratio` is the median over rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from interleave import interleave

from nnopt_jax import parallel


def loss(params: Any, x: jax.Array) -> jax.Array:
    return sum(jnp.square(x @ w).mean() for w in params.values())  # pyright: ignore[reportReturnType]


def steps(leaves: int) -> dict[str, Callable[[], Any]]:
    """The same step by `jax.jit` and by the library."""
    params = {f"w{number}": jnp.ones((8, 8)) for number in range(leaves)}
    optimizer, x = optax.adam(1e-3), jnp.ones((8, 8))
    plan = parallel.specs(params, parallel.mesh(devices=jax.devices()[:1], fsdp=1))
    run = parallel.train_step(loss, optimizer, plan=plan)
    held = {"ours": run.init(params), "jit": (params, optimizer.init(params))}
    held["jit"] = jax.tree.map(jnp.copy, held["jit"])

    def step(state: Any, x: jax.Array) -> Any:
        params, opt_state = state
        value, slope = jax.value_and_grad(loss)(params, x)
        updates, opt_state = optimizer.update(slope, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    def call(name: str, run: Callable[..., Any]) -> Callable[[], Any]:
        def once() -> Any:
            held[name], value = run(held[name], x)
            return value

        return once

    own = run.layout.shardings
    moments = own.opt_state[0]
    moments = moments._replace(mu=moments.mu.params, nu=moments.nu.params)
    at = own.params, (moments, *own.opt_state[1:])
    rows, whole = run.at[:2]
    by_hand = jax.jit(step, in_shardings=(at, rows), out_shardings=(at, whole), donate_argnums=0)
    return {"jit": call("jit", by_hand), "ours": call("ours", run)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="rounds, each of several calls")
    rounds = parser.parse_args().rounds
    for leaves in (4, 100):
        found = interleave(steps(leaves), rounds=rounds, shortest=1e-4)
        for name, timing in found.items():
            print(f"{leaves} leaves, {name}: {timing}")


if __name__ == "__main__":
    main()
