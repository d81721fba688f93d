"""What tracing costs: a plain function on dense parameters beside `on_packed` on packed ones.

    python benchmarks/tracing.py [--layers 12] [--width 768] [--rounds 5] [--repeat 3] [--profile]

The network is a transformer in Linen, its kernels packed as int8. Timed is `jax.jit(f).lower(...)`:
tracing and lowering, nothing compiled. A round lowers both, in turns; printed are the medians over
the rounds and the median of the ratios of the same round, by two clocks: `cpu` is the processor
time of this process, which other programs disturb least. All of it as often as `--repeat` says: how
far those are apart tells what to believe, as does "plain again", the plain function a second time.

Then a few calls under one kept `jax.jit`: how often the function was traced and compiled.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import logging
import pstats
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

import nnopt_jax as nnopt


class Block(nn.Module):
    """Attention and a feed-forward network, normalization first."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, t, d) to (b, t, d)."""
        width = x.shape[-1]
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
        h = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x)))
        return x + nn.Dense(width)(h)


class Transformer(nn.Module):
    """Tokens to logits."""

    layers: int
    width: int
    heads: int = 12
    tokens: int = 1000

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(b, t) to (b, t, tokens)."""
        x = nn.Embed(self.tokens, self.width)(tokens)
        for _ in range(self.layers):
            x = Block(self.heads)(x)
        return nn.Dense(self.tokens)(nn.LayerNorm()(x))


def lowered(function: Callable[..., Any], *args: Any) -> tuple[float, float]:
    """Seconds by the processor and by the wall; nothing is remembered of a new function."""
    gc.collect()
    start = time.process_time(), time.perf_counter()
    jax.jit(lambda *given: function(*given)).lower(*args)
    return time.process_time() - start[0], time.perf_counter() - start[1]


def measure(rows: dict[str, tuple[Any, ...]], rounds: int) -> None:
    """Prints a line for each row, and the ratios to the first."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for number in range(rounds):
        for name in list(rows)[:: 1 if number % 2 == 0 else -1]:
            seconds[name].append(lowered(*rows[name]))
    base = next(iter(seconds.values()))
    for name, taken in seconds.items():
        told = [f"  {name:12}"]
        for clock, which in enumerate(("cpu", "wall")):
            own, plain = [t[clock] for t in taken], [t[clock] for t in base]
            ratio = statistics.median(a / b for a, b in zip(own, plain, strict=True))
            told.append(f"{which} {statistics.median(own):6.3f} s {ratio:6.3f} x plain")
        print("   ".join(told), flush=True)


class Compiled(logging.Handler):
    """Counts what JAX says it compiles."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.count = name, 0

    def emit(self, record: logging.LogRecord) -> None:
        """Of the one function."""
        self.count += f"Compiling jit({self.name})" in record.getMessage()


def calls(apply: Callable[..., Any], packed: Any, tokens: jax.Array) -> None:
    """Prints how often one kept function is traced and compiled."""
    traces = 0

    def kept(params: Any, tokens: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return apply(params, tokens)

    def kept_function(params: Any, tokens: jax.Array) -> jax.Array:
        return nnopt.on_packed(kept)(params, tokens)

    seen, log = Compiled("kept_function"), logging.getLogger("jax")
    log.addHandler(seen)
    level, propagate = log.level, log.propagate
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        with jax.log_compiles():
            run = jax.jit(kept_function)
            for shift in range(4):
                jax.block_until_ready(run(packed, (tokens + shift) % 1000))
    finally:
        log.removeHandler(seen)
        log.setLevel(level)
        log.propagate = propagate
    print(f"  4 calls: traced {traces}, compiled {seen.count}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="also where the time goes")
    args = parser.parse_args()
    model = Transformer(args.layers, args.width)
    tokens = jnp.zeros((1, 16), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    tx = nnopt.quantization.uniform(8, where="**/kernel")
    packed = jax.eval_shape(lambda p: tx.pack(p, tx.init(p)), shapes)
    packed_apply = nnopt.on_packed(model.apply)
    rows = {
        "plain": (model.apply, shapes, tokens),
        "packed": (packed_apply, packed, tokens),
        "plain again": (model.apply, shapes, tokens),
    }
    for row in rows.values():
        lowered(*row)
    for _ in range(args.repeat):
        print(f"jax {jax.__version__}, {args.layers} layers of {args.width}, lowered")
        measure(rows, args.rounds)
    print("under one kept jax.jit")
    small = Transformer(1, 48)
    params = small.init(jax.random.key(0), tokens)
    calls(small.apply, tx.pack(params, tx.init(params)), tokens)
    if args.profile:
        profile = cProfile.Profile()
        profile.runcall(lowered, *rows["packed"])
        pstats.Stats(profile).sort_stats("cumulative").print_stats("nnopt_jax", 40)


if __name__ == "__main__":
    main()
