"""What the suite runs: every registered case, alone and in chains."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

import nnopt_jax as nnopt
from nnopt_jax import registry
from tests.contract.methods import CONTRACTS, Contract

SINGLE = {
    f"{name}-{i}": (name, dict(case))
    for name, contract in CONTRACTS.items()
    for i, case in enumerate(contract.cases)
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


def first(key: str) -> bool:
    """Whether this is the first case of its method: the one that compiled checks run on."""
    return key.endswith("-0")


def entry(key: str) -> Contract:
    """What the suite knows of the method of a case."""
    return CONTRACTS[SINGLE[key][0]]


def trains_as_stored(key: str) -> bool:
    """Whether training sees what is stored, with the settings of this case."""
    flag = entry(key).trains_as_stored
    return flag(SINGLE[key][1]) if callable(flag) else flag


def _pairs() -> dict[str, tuple[str, str]]:
    """Every ordered pair of methods: a cell of the table."""
    firsts = [key for key in SINGLE if first(key)]
    return {"+".join(pair): pair for pair in itertools.product(firsts, repeat=2)}


PAIRS = _pairs()

PLAIN = ("pruning.magnitude-0", "compression.codebook-0", "quantization.uniform-0")
"""One method for each way to compose; they meet each other in every run."""

MASK = "pruning.magnitude-0"
"""Every method meets it on both sides in every run: zeros are what chains lose most easily."""


def marks(key: str) -> Any:
    """Marks a cell slow that tells little beyond those of masks and of the plain methods."""
    pair = PAIRS[key]
    return () if MASK in pair or set(pair) <= set(PLAIN) else pytest.mark.slow


def single(key: str) -> nnopt.Transform:
    """The transform of one case."""
    name, settings = SINGLE[key]
    return build(name, **settings)


def pair(key: str) -> nnopt.Transform:
    """The chain of two cases, as its cell of the table has a meaning."""
    return nnopt.chain(*links(key))


def links(key: str) -> tuple[nnopt.Transform, nnopt.Transform]:
    """Two cases; the first leaves out what the second replaces."""
    before, after = PAIRS[key]
    replaced = entry(after).replaces
    if replaced:
        return nnopt.at(lambda path, leaf: path not in replaced, single(before)), single(after)
    return single(before), single(after)


def replaces(key: str) -> bool:
    """Whether a case, or one of a pair, replaces leaves by others, and so needs all of them."""
    return any(entry(part).replaces for part in PAIRS.get(key, (key,)))


def refusal(key: str) -> str | None:
    """What the error says of a pair that has no meaning."""
    before, after = (entry(part) for part in PAIRS[key])
    if before.quantizes and after.quantizes:
        return "is quantized already; quantize it once"
    if {SINGLE[part][0] for part in PAIRS[key]} == {"quantization.quantize_activations"}:
        return "rounds what it is multiplied with already; do it once"
    if before.kind == "refine" and after.comes_first:
        return "already; put"
    if before.replaces and after.replaces:
        return "which would be lost"
    return None
