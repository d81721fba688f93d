"""Each rule against its primitive: where entries come from, and what depends on them."""

from __future__ import annotations

import pytest

from nnopt_jax.trace.primitives import TABLE, Kind, Same, named, rule_of
from tests.trace.primitives.cases import (
    HERE,
    LOOKUPS,
    MOVEMENTS,
    Case,
)
from tests.trace.primitives.machine import captured, check_changes, check_values

NOT_REPEATABLE = named("rng_uniform rng_bit_generator empty")
ON_A_MESH = named(
    "all_gather all_gather_invariant all_to_all axis_index pmax pmin ppermute psum psum_invariant "
    "pvary reduce_scatter sharding_constraint"
)
UNBOUND = named("after_all create_token empty2 platform_index")
"""Primitives of effects and platforms, which only a compiled program runs."""


def equations(case: Case):
    (primitive,) = named(case.name)
    found = [captured(case.function, *base)[primitive.name] for base in case.bases]
    return found[0][0], [values for _, values in found]


def label(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", HERE, ids=label)
def test_what_changes(case):
    equation, bases = equations(case)
    if equation.primitive in NOT_REPEATABLE:
        assert rule_of(equation).kind is Kind.MADE
        return
    check_changes(equation, bases, case.exact)


@pytest.mark.parametrize("case", [c for c in MOVEMENTS + LOOKUPS if named(c.name)], ids=label)
def test_where_entries_come_from(case):
    equation, (values, *_) = equations(case)
    assert rule_of(equation).same is Same.IDENTITY
    check_values(equation, values)


def test_every_primitive_has_a_case():
    covered = {named(case.name)[0] for case in HERE} | {*ON_A_MESH, *UNBOUND}
    covered |= {*named("ragged_dot_general")}
    assert not {*TABLE.rules} - covered
    assert len(TABLE) >= 170
