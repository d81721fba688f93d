"""What the suite runs: every registered case, alone and in chains."""

from __future__ import annotations

import itertools
from typing import Any

import nnopt_jax as nnopt
from nnopt_jax import registry

SINGLE = {
    f"{name}-{i}": (name, dict(case))
    for name, entry in registry.ENTRIES.items()
    for i, case in enumerate(entry.cases)
}
"""Settings of every case, by name and number."""

ORDERS = {
    "-".join(order): order
    for order in itertools.permutations(
        ("pruning.magnitude", "compression.codebook", "quantization.uniform")
    )
}
"""The six orders of prune, share and quantize."""


def build(name: str, **settings: Any) -> nnopt.Transform:
    """The transform of a case."""
    return registry.get(name).load()(**settings)


def _pairs() -> dict[str, tuple[str, str]]:
    """Every ordered pair of methods, twice: with the first cases, and with the second ones."""
    by_name = {
        name: [key for key, (owner, _) in SINGLE.items() if owner == name]
        for name in registry.ENTRIES
    }
    found = {}
    for first, second in itertools.product(by_name.values(), repeat=2):
        for i in range(2):
            pair = first[i % len(first)], second[(i + 1) % len(second)]
            found["+".join(pair)] = pair
    return found


PAIRS = _pairs()


def kind(key: str) -> str:
    """`"wrap"` or `"refine"`."""
    return registry.get(SINGLE[key][0]).kind


def quantizes(key: str) -> bool:
    """Whether the method puts values on a grid, which can be done once only."""
    return SINGLE[key][0].startswith("quantization.")


def single(key: str) -> nnopt.Transform:
    """The transform of one case."""
    name, settings = SINGLE[key]
    return build(name, **settings)


def pair(key: str) -> nnopt.Transform:
    """The chain of two cases."""
    return nnopt.chain(*(single(part) for part in PAIRS[key]))
