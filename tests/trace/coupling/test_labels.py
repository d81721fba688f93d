"""Labels joined by vectors are what joining them one by one makes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from nnopt_jax.trace.coupling.labels import LabelSets

PAIRS = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30)


def joined_parts(size, pairs):
    """Return the set of each number in 0..size-1 after joining one pair at a time."""
    part = list(range(size))
    for a, b in pairs:
        old, new = part[a], part[b]
        part = [new if each == old else each for each in part]
    return part


@given(PAIRS, PAIRS)
def test_joins_are_those_of_single_pairs(first, second):
    sets = LabelSets()
    labels = sets.new_labels(20)
    for pairs in (first, second):
        at = np.array(pairs, int).reshape(-1, 2)
        sets.join(labels[at[:, 0]], labels[at[:, 1]])
    found, wanted = sets.find(labels), np.array(joined_parts(20, first + second))
    np.testing.assert_array_equal(found[:, None] == found, wanted[:, None] == wanted)


@given(PAIRS, st.lists(st.integers(0, 19), max_size=5))
def test_what_is_fixed_fixes_its_set(pairs, fixed):
    sets = LabelSets()
    labels, wanted = sets.new_labels(20), joined_parts(20, pairs)
    sets.fix(labels[np.array(fixed, int)], "why")
    at = np.array(pairs, int).reshape(-1, 2)
    for a, b in at:  # in turn, for a fixed one gives its reason to what it meets
        sets.join(labels[[a]], labels[[b]])
    for a, b in at[::-1]:
        sets.join(labels[[a]], labels[[b]])
    still = {wanted[each] for each in fixed}
    assert set(np.array(wanted)[sets.is_fixed(labels)]) >= {wanted[each] for each in fixed}
    assert {wanted[each] for each in np.flatnonzero(sets.is_fixed(labels))} <= still


@pytest.mark.parametrize("shape", [(2, 6), (3, 4), (4, 3), (6, 2)])
def test_a_rectangle_loses_whole_rows_and_columns(shape):
    sets = LabelSets()
    flat = sets.new_labels(12)
    rows, columns = sets.split(flat, shape[0])
    sets.mark_summed(flat)
    sets.propagate()
    gone = sets.removed_labels(np.array([rows[1], columns[0]]))
    wanted = np.zeros(shape, bool)
    wanted[1], wanted[:, 0] = True, True
    np.testing.assert_array_equal(gone[flat].reshape(shape), wanted)
    at, unit, _ = sets.units(flat)
    assert set(unit) == {*sets.find(rows), *sets.find(columns)}
    assert len(at) == 24


def test_merged_and_parted_again_are_the_same():
    sets = LabelSets()
    rows, columns = sets.new_labels(3), sets.new_labels(4)
    again = sets.split(sets.flatten(rows, columns), 3)
    for ours, theirs in zip(again, (rows, columns), strict=True):
        np.testing.assert_array_equal(sets.find(ours), sets.find(theirs))


def test_two_parted_axes_that_meet_share_their_parts():
    sets = LabelSets()
    a, b = sets.new_labels(6), sets.new_labels(6)
    (first, second), (other, another) = sets.split(a, 2), sets.split(b, 2)
    sets.join(a, b)
    np.testing.assert_array_equal(sets.find(first), sets.find(other))
    np.testing.assert_array_equal(sets.find(second), sets.find(another))


def test_a_pair_that_is_part_of_itself_stays():
    sets = LabelSets()
    flat = sets.new_labels(4)
    rows, _ = sets.split(flat, 2)
    sets.join(rows, flat[:2])
    sets.mark_summed(flat)
    sets.propagate()
    at, unit, _ = sets.units(flat)  # ends
    gone = sets.removed_labels(np.unique(unit))
    assert not gone[flat][sets.is_fixed(flat)].any()
    assert len(at) <= 8
