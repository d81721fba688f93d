"""Every registered transform, in every case of its own, obeys every law."""

from __future__ import annotations

import pytest

from tests.contract import cases, checks

PAIRS = [
    pytest.param(
        case,
        check,
        marks=() if cases.first(case) else pytest.mark.slow,
    )
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
    assert {name for name, _ in cases.SINGLE.values()} == set(cases.registry.ENTRIES)
    assert all(entry.cases for entry in cases.registry.ENTRIES.values())
