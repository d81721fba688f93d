"""Every registered transform, in every case of its own, obeys every law."""

from __future__ import annotations

import pytest

from tests.contract import cases, checks


@pytest.mark.parametrize("check", checks.CHECKS)
@pytest.mark.parametrize("case", cases.SINGLE)
def test_case_obeys(case, check):
    checks.CHECKS[check](cases.single(case), checks.example_params())


def test_every_method_has_cases():
    assert {name for name, _ in cases.SINGLE.values()} == set(cases.registry.ENTRIES)
    assert all(entry.cases for entry in cases.registry.ENTRIES.values())
