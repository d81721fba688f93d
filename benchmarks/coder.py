"""The entropy coder beside zlib and zstd: size against the order-0 entropy, and speed.

    python benchmarks/coder.py [--sizes 1,16] [--rounds 3]
    python benchmarks/coder.py --files runs/*/model.nnopt

Streams are independent symbols, so that no coder can go below their empirical entropy by more than
luck. zlib (level 6) and zstd (level 3; needs `pip install zstandard`) get the same symbols packed
into 1, 2, 4 or 8 bits each, the form that suits them best; constriction (`pip install
constriction`) gets the exact frequencies, whose table is not counted. Rounds give every coder its
turn; times are medians, on one thread, of `clock`: `cpu` counts the processor time of this process,
which other programs on the machine disturb least; `wall` is what passes.

With `--files` it prints what trained networks take, against the sum over leaves of the order-0
entropy of all their values, zeros included.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import nnopt_jax as nnopt
from nnopt_jax.artifact import codec

MILLION = 1 << 20
Pair = tuple[Callable[[], bytes], Callable[[bytes], np.ndarray]]


def streams(size: int) -> dict[str, tuple[np.ndarray, int]]:
    """Name -> (symbols, alphabet)."""
    rng = np.random.default_rng(0)

    def rare(share: float) -> np.ndarray:
        return (rng.random(size, np.float32) < share).astype(np.uint8)

    def bell(alphabet: int, width: float) -> np.ndarray:
        drawn = rng.standard_normal(size, np.float32) * width + alphabet // 2
        return np.clip(np.rint(drawn), 0, alphabet - 1).astype(np.uint8)

    pruned = np.where(rare(0.1), bell(256, 20), 128).astype(np.uint8)
    return {
        "mask, 0.56 % kept": (rare(0.0056), 2),
        "mask, 11 % kept": (rare(0.11), 2),
        "mask, half kept": (rare(0.5), 2),
        "ternary": (bell(3, 0.8), 3),
        "16 clusters": (bell(16, 3.0), 16),
        "16 clusters, skewed": (bell(16, 0.18), 16),
        "int8": (bell(256, 24.0), 256),
        "int8, 90 % zero": (pruned, 256),
        "bytes, uniform": (rng.integers(0, 256, size, np.uint8), 256),
    }


def entropy(symbols: np.ndarray) -> float:
    """Bytes of the empirical order-0 entropy."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def coders(symbols: np.ndarray, alphabet: int) -> dict[str, Pair]:
    width = next(bits for bits in (1, 2, 4, 8) if 1 << bits >= alphabet)
    bits = np.unpackbits(symbols[:, None], axis=1, count=width, bitorder="little")
    packed = np.packbits(bits, bitorder="little").tobytes()
    pairs: dict[str, Pair] = {
        "nnopt": (
            lambda: codec.encode(symbols, alphabet),
            lambda data: codec.decode(data, symbols.shape, alphabet),
        ),
        "zlib": (
            lambda: zlib.compress(packed),
            lambda data: np.frombuffer(zlib.decompress(data), np.uint8),
        ),
    }
    if importlib.util.find_spec("zstandard"):
        import zstandard

        write, read = zstandard.ZstdCompressor(3), zstandard.ZstdDecompressor()
        pairs["zstd"] = (
            lambda: write.compress(packed),
            lambda data: np.frombuffer(read.decompress(data), np.uint8),
        )
    if importlib.util.find_spec("constriction"):
        pairs["constriction"] = constriction_ans(symbols, alphabet)
    return pairs


def constriction_ans(symbols: np.ndarray, alphabet: int) -> Pair:
    """Return the encoder and the decoder of constriction's ANS, with one table."""
    import constriction  # pyright: ignore[reportMissingImports]

    model, stack = constriction.stream.model, constriction.stream.stack
    counts = np.bincount(symbols, minlength=alphabet)
    table = model.Categorical(np.maximum(counts, 1) / np.maximum(counts, 1).sum(), perfect=False)

    def encode() -> bytes:
        coder = stack.AnsCoder()
        coder.encode_reverse(symbols.astype(np.int32), table)
        return coder.get_compressed().tobytes()

    def decode(data: bytes) -> np.ndarray:
        return stack.AnsCoder(np.frombuffer(data, np.uint32)).decode(table, symbols.size)

    return encode, decode


def measure(
    symbols: np.ndarray, alphabet: int, rounds: int, clock: Callable[[], float]
) -> dict[str, tuple[int, float, float]]:
    """By coder: bytes, and seconds to encode and to decode."""
    times: dict[str, list[tuple[float, float]]] = {}
    sizes = {}
    for _ in range(rounds):
        for name, (encode, decode) in coders(symbols, alphabet).items():
            start = clock()
            data = encode()
            middle = clock()
            back = decode(data)
            times.setdefault(name, []).append((middle - start, clock() - middle))
            sizes[name] = len(data)
            if name == "nnopt" and not np.array_equal(back, symbols):
                raise SystemExit("The symbols did not come back.")
    return {
        name: (sizes[name], *(statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in times.items()
    }


def table(size: int, rounds: int, clock: Callable[[], float]) -> Table:
    out = Table(title=f"{size:,} independent symbols: bytes / entropy, M symbols/s in and out")
    for column in ("stream", "bits", "coder", "bytes", "/ entropy", "encoded", "decoded"):
        out.add_column(column, justify="left" if column in ("stream", "coder") else "right")
    for stream, (symbols, alphabet) in streams(size).items():
        least = entropy(symbols)
        for name, (taken, write, read) in measure(symbols, alphabet, rounds, clock).items():
            out.add_row(
                stream if name == "nnopt" else "",
                f"{8 * least / size:.3f}" if name == "nnopt" else "",
                name,
                f"{taken:,}",
                f"{taken / least:.4f}",
                *(f"{size / seconds / 1e6:.1f}" for seconds in (write, read)),
            )
    return out


def networks(paths: list[str]) -> Table:
    out = Table(title="Whole files against the order-0 entropy of every leaf's values")
    for column in ("file", "bytes", "entropy", "ratio", "of float32", "load, s"):
        out.add_column(column, justify="left" if column == "file" else "right")
    for path in paths:
        start = time.perf_counter()
        packed = nnopt.load(path)
        seconds = time.perf_counter() - start
        leaves: list[Any] = list(nnopt.tree.flatten(nnopt.materialize(packed)).values())
        least = sum(entropy(np.asarray(leaf)) for leaf in leaves)
        taken, dense = nnopt.inspect(path).file_bytes, 4 * sum(leaf.size for leaf in leaves)
        out.add_row(path, f"{taken:,}", f"{least:,.0f}", f"{taken / least:.4f}",
                    f"1/{dense / taken:.1f}", f"{seconds:.2f}")  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1,16", help="millions (2^20) of symbols")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--files", nargs="*", default=[], help="files to look at instead")
    options = parser.parse_args()
    console = Console(width=110)
    if options.files:
        console.print(networks(options.files))
        return
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    for size in options.sizes.split(","):
        console.print(table(int(float(size) * MILLION), options.rounds, clock))


if __name__ == "__main__":
    main()
