"""k-means of 16 million weights: time of fit and assignment, distortion against the optimum.

    python benchmarks/kmeans.py [--size 16777216] [--skip-sklearn]

The optimum is that of the values in 8,192 bins, each at the mean of its values, by dynamic
programming over all divisions. scikit-learn's MiniBatchKMeans takes from a minute to half an hour,
so it runs once, between the rounds of our own timings: both meet the same machine.
"""

from __future__ import annotations

import argparse
import functools
import time

import jax.numpy as jnp
import numpy as np
from interleave import interleave, show

from nnopt_jax.ops.clustering import kmeans
from nnopt_jax.ops.lookup_tables import assign


def optimal_table(values: np.ndarray, clusters: int, bins: int) -> np.ndarray:
    """Gives the best table for binned values, by divide and conquer: O(clusters bins log bins)."""
    low, high = float(values.min()), float(values.max())
    index = np.clip(((values - low) * (bins / (high - low))).astype(np.int64), 0, bins - 1)
    columns = [np.bincount(index, minlength=bins).astype(np.float64)]
    columns += [np.bincount(index, values.astype(np.float64) ** p, bins) for p in (1, 2)]
    full = columns[0] > 0
    prefix = [np.concatenate([[0.0], np.cumsum(column[full])]) for column in columns]
    best = _cost(prefix, np.zeros(full.sum() + 1, int), np.arange(full.sum() + 1))
    begins = []
    for _ in range(clusters - 1):
        best, begin = _layer(prefix, best)
        begins.append(begin)
    edges = [len(best) - 1]
    for begin in reversed(begins):
        edges.append(begin[edges[-1]])
    edges = np.array([0, *edges[::-1]])
    number, total = (np.diff(column[edges]) for column in prefix[:2])
    return total[number > 0] / number[number > 0]


def _cost(prefix: list[np.ndarray], begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Squared distances of the bins `begin` to `end - 1` from their mean."""
    number, first, second = (column[end] - column[begin] for column in prefix)
    return np.where(number > 0, second - first**2 / np.where(number > 0, number, 1), 0)


def _layer(prefix: list[np.ndarray], best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adds one cluster: the best beginnings ascend, so each level halves what is left to search."""
    found, begins = np.zeros_like(best), np.zeros(len(best), int)
    # Open ranges of ends, and of the beginnings that come into question for them.
    low, high = np.array([1]), np.array([len(best) - 1])
    least, most = np.array([0]), np.array([len(best) - 1])
    while len(low):
        end = (low + high) // 2
        length = np.minimum(most, end) - least + 1
        start = np.concatenate([[0], np.cumsum(length)[:-1]])
        owner = np.repeat(np.arange(len(low)), length)
        begin = np.arange(length.sum()) - start[owner] + least[owner]
        total = best[begin] + _cost(prefix, begin, end[owner])
        found[end] = np.minimum.reduceat(total, start)
        hits = np.flatnonzero(total == found[end][owner])
        _, first = np.unique(owner[hits], return_index=True)
        begins[end] = begin[hits[first]]
        left, right = low < end, end < high
        low, high, least, most = (
            np.concatenate(pair)
            for pair in (
                (low[left], end[right] + 1),
                (end[left] - 1, high[right]),
                (least[left], begins[end][right]),
                (begins[end][left], most[right]),
            )
        )
    return found, begins


def distortion(values: np.ndarray, table: np.ndarray) -> float:
    """Mean squared distance to the nearest entry, a million values at a time."""
    table = np.sort(table.astype(np.float64))
    middles, total = table[:-1] / 2 + table[1:] / 2, 0.0
    for part in np.array_split(values, max(1, len(values) // 1_000_000)):
        total += np.sum((part - table[np.searchsorted(middles, part)]) ** 2)
    return float(total / len(values))


def sklearn_table(values: np.ndarray, clusters: int) -> tuple[np.ndarray, float]:
    """Fits MiniBatchKMeans once; also gives the seconds of fit and labels."""
    from sklearn.cluster import MiniBatchKMeans

    begin = time.perf_counter()
    model = MiniBatchKMeans(clusters, n_init=1, random_state=0).fit(values[:, None])
    return model.cluster_centers_.ravel(), time.perf_counter() - begin


def main() -> None:
    """Prints times and distortions for 16 and 256 clusters."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1 << 24)
    parser.add_argument("--bins", type=int, default=8192, help="bins of the optimum")
    parser.add_argument("--skip-sklearn", action="store_true")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = max(1, options.size // 4096)
    values = rng.standard_normal((rows, options.size // rows), dtype=np.float32)
    placed = jnp.asarray(values)
    for clusters in (16, 256):
        table = kmeans(placed, clusters)
        runs = {
            "fit": functools.partial(kmeans, placed, clusters),
            "assign": functools.partial(assign, placed, table),
        }
        title = f"{values.size:,} weights, {clusters} clusters"
        show(title, interleave(runs, rounds=9))
        other = None if options.skip_sklearn else sklearn_table(values.ravel(), clusters)
        if other is not None:
            show(f"{title}, again", interleave(runs, rounds=9))
            print(f"  MiniBatchKMeans, once: {other[1]:.1f} s")
        best = distortion(values.ravel(), optimal_table(values.ravel(), clusters, options.bins))
        mine = distortion(values.ravel(), np.asarray(table))
        print(f"  distortion {mine:.6g}; optimum on {options.bins:,} bins {best:.6g}", end="")
        print(f" ({100 * (mine / best - 1):+.2f} %)")
        if other is not None:
            theirs = distortion(values.ravel(), other[0])
            print(
                f"  MiniBatchKMeans {theirs:.6g} ({100 * (theirs / best - 1):+.2f} %)", flush=True
            )


if __name__ == "__main__":
    main()
