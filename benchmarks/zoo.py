"""The zoo of the tests, model by model: what stays packed, what moves together, and how exactly.

    python -m benchmarks.zoo [NAME ...]

Run from the project's folder, with the extra `test`. Leaves are integers of eight bits. `packed`
and `dense` are uses of leaves; reasons are said below. `error` is the greatest difference between
what comes out of packed and of dense parameters, over the greatest magnitude; `shrunk` likewise
between the function without half of the units of every dimension and the one with zeros in their
place.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nnopt_jax as nnopt
from nnopt_jax.columns import aligned
from tests.trace.zoo.case import Case, half_of, pack
from tests.trace.zoo.models import MODELS


def far(found: Any, wanted: Any) -> float:
    """The greatest difference, over the greatest magnitude of all arrays."""
    pairs = [
        (np.asarray(one, np.float64), np.asarray(other, np.float64))
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    ]
    most = max((np.abs(other).max(initial=0.0) for _, other in pairs), default=0.0)
    return max(np.abs(one - other).max(initial=0.0) for one, other in pairs) / max(most, 1e-30)


def packed(case: Case) -> tuple[int, list[str], float]:
    """Uses that stay packed, why others do not, and the error."""
    leaves = jax.jit(pack)(case.params)
    report = nnopt.on_packed(case.apply).report(leaves, *case.args)
    dense = [f"{use.path} in {use.primitive}: {use.reason}" for use in report.materialized]
    found = jax.jit(nnopt.on_packed(case.apply))(leaves, *case.args)
    wanted = jax.jit(case.apply)(nnopt.materialize(leaves), *case.args)
    return len(report.uses) - len(dense), dense, far(found, wanted)


def halved(case: Case) -> tuple[int, int, float]:
    """Dimensions, the units in them, and how far the half is from the masked whole."""
    graph = nnopt.graph(case.apply, case.params, *case.args)
    keep = half_of(graph.coupled)
    params = jax.tree.map(jnp.asarray, case.params)
    small = graph.shrink(params, keep)
    found = jax.jit(small.apply)(small.params, *case.args)
    wanted = jax.jit(case.apply)(graph.mask(params, keep), *case.args)
    return len(keep), sum(each.size for each in graph.coupled.dimensions), far(found, wanted)


def main() -> None:
    """All models, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*MODELS, []])
    rows, reasons = [], []
    for name in parser.parse_args().names or MODELS:
        case = MODELS[name]()
        stays, dense, error = packed(case)
        dimensions, units, shrunk = halved(case)
        row = (name, stays, len(dense), f"{error:.1e}", dimensions, units, f"{shrunk:.1e}")
        rows.append(tuple(map(str, row)))
        reasons += [f"{name}: {text}" for text in dense]
    head = ("model", "packed", "dense", "error", "dimensions", "units", "shrunk")
    print("\n".join(aligned([head, *rows], numbers=len(head) - 1)))
    print("\n".join(reasons))


if __name__ == "__main__":
    main()
