"""The laws hold for combinations of choices, drawn at random, and for choices of one's own."""

from __future__ import annotations

import functools
import pathlib

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import nnopt_jax as nnopt
from nnopt_jax.errors import ValueRangeError
from nnopt_jax.pruning import Regrow, by_score
from nnopt_jax.pruning.scores import SCORES
from nnopt_jax.quantization import on_grid
from nnopt_jax.quantization.grids import GRIDS
from nnopt_jax.quantization.ranges import RANGES
from nnopt_jax.quantization.rounding import ROUNDINGS
from tests.contract import checks, choices_page, methods
from tests.contract.own_choices import distance_to_grid, powers_of_two

PRUNING = st.fixed_dictionaries(
    {
        "score": st.sampled_from(sorted(SCORES)),
        "sparsity": st.sampled_from([0.0, 0.3, 0.75, methods.ramp]),
        "pattern": st.sampled_from([None, "per_output", "2:4", (2, 2), (4,)]),
        "allocation": st.sampled_from([None, "uniform", "erk", "global", "lamp"]),
        "mode": st.sampled_from([None, "hard", "soft", "frozen", Regrow("random", 0.5)]),
        "every": st.sampled_from([None, 1, 2]),
    }
)
QUANTIZATION = st.fixed_dictionaries(
    {
        "grid": st.sampled_from(sorted(GRIDS)),
        "size": st.sampled_from([{}, {"granularity": "tensor"}, {"granularity": "channel"},
                                 {"group": 3}, {"group": 4}]),
        "range": st.sampled_from([None, *sorted(RANGES)]),
        "rounding": st.sampled_from(sorted(ROUNDINGS)),
        "scale_dtype": st.sampled_from([None, "float32", "bfloat16", "e8m0"]),
        "double": st.booleans(),
        "every": st.sampled_from([1, 2]),
    }
)  # fmt: skip


def pruned(choices) -> nnopt.Transform | None:
    """The transform; None where an error says that the combination has no meaning."""
    choices = dict(choices)
    if choices["pattern"] == "2:4":
        choices["sparsity"] = None
    try:
        return by_score(choices.pop("score"), choices.pop("sparsity"), **choices)
    except ValueRangeError:
        return None


def quantized(choices) -> nnopt.Transform | None:
    """Likewise."""
    choices = dict(choices)
    try:
        return on_grid(choices.pop("grid"), **choices.pop("size"), **choices)
    except ValueRangeError:
        return None


def obeys(tx: nnopt.Transform | None) -> None:
    if tx is not None:
        checks.check_law_eagerly(tx, checks.example_params())


def sampled(strategy, examples: int):
    """Draw so many combinations, the same ones in every run."""
    limits = settings(
        max_examples=examples, deadline=None, derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    return lambda test: limits(given(strategy)(test))


@sampled(PRUNING, 12)
def test_pruning_obeys_the_law(choices):
    obeys(pruned(choices))


@sampled(QUANTIZATION, 12)
def test_quantization_obeys_the_law(choices):
    obeys(quantized(choices))


@sampled(st.tuples(PRUNING, QUANTIZATION), 8)
def test_chains_obey_the_law(pair):
    prune, quantize = pruned(pair[0]), quantized(pair[1])
    if prune is not None and quantize is not None:
        obeys(nnopt.chain(prune, quantize))


@pytest.mark.slow
@sampled(st.tuples(PRUNING, QUANTIZATION), 150)
def test_many_chains_obey_the_law(pair):
    prune, quantize = pruned(pair[0]), quantized(pair[1])
    obeys(prune)
    obeys(quantize)
    if prune is not None and quantize is not None:
        obeys(nnopt.chain(prune, quantize))


OWN = {
    "score": functools.partial(by_score, distance_to_grid(), 0.5),
    "grid": functools.partial(on_grid, powers_of_two(), granularity="channel"),
}
"""One line each is all that a choice of one's own needs."""


@pytest.mark.parametrize("check", checks.CHECKS)
@pytest.mark.parametrize("kind", OWN)
def test_choices_of_ones_own_obey_every_law(kind, check):
    checks.CHECKS[check](OWN[kind](), checks.example_params())


def test_the_page_says_which_pairs_have_a_meaning():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "choices.md").read_text()
    lines = [line for line in choices_page.page().splitlines() if line]
    assert [line for line in lines if line not in text] == []
