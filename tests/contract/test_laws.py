"""Every registered transform, in every case of its own, obeys every law."""

from __future__ import annotations

import pytest

from tests.contract import cases, checks

LONG = {
    "mesh": {"compression.dkm", "pruning.sparse_evolution", "pruning.proximal", "pruning.taylor"}
    | {f"pruning.{name}" for name in ("saliency", "fisher", "movement", "snip", "grasp")},
    "vmap": {"compression.dkm", "pruning.sparse_evolution"},
    "fixed_point": {"compression.dkm"},
}
"""Methods whose check takes long, and is made of another of their kind in every run."""


def marks(case, check):
    often = cases.first(case) and cases.SINGLE[case][0] not in LONG.get(check, ())
    return () if often else pytest.mark.slow


PAIRS = [
    pytest.param(case, check, marks=marks(case, check))
    for case in cases.SINGLE
    for check in checks.CHECKS
    if (cases.entry(case).straight_through or check != "gradients")
    and (cases.trains_as_stored(case) or check != "trained_is_stored")
]


@pytest.mark.parametrize(("case", "check"), PAIRS)
def test_case_obeys(case, check):
    params = checks.example_params()
    if check == "mesh" and not cases.replaces(case):  # each leaf costs a compilation
        params = {"dense": params["dense"], "steps": params["steps"]}
    checks.CHECKS[check](cases.single(case), params)


@pytest.mark.parametrize("case", [case for case in cases.SINGLE if not cases.first(case)])
def test_law_of_further_cases(case):
    checks.check_law_eagerly(cases.single(case), checks.example_params())


def test_every_method_has_cases():
    assert {name for name, _ in cases.SINGLE.values()} == set(cases.registry.METHODS)
