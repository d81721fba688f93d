"""Labels joined by vectors are what joining them one by one makes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from nnopt_jax.trace.coupling.labels import Book

PAIRS = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30)


def sets(size, pairs):
    """The parts of 0..size-1 after joining, one pair at a time."""
    part = list(range(size))
    for a, b in pairs:
        old, new = part[a], part[b]
        part = [new if each == old else each for each in part]
    return part


@given(PAIRS, PAIRS)
def test_joins_are_those_of_single_pairs(first, second):
    book = Book()
    labels = book.fresh(20)
    for pairs in (first, second):
        at = np.array(pairs, int).reshape(-1, 2)
        book.join(labels[at[:, 0]], labels[at[:, 1]])
    found, wanted = book.find(labels), np.array(sets(20, first + second))
    np.testing.assert_array_equal(found[:, None] == found, wanted[:, None] == wanted)


@given(PAIRS, st.lists(st.integers(0, 19), max_size=5))
def test_what_is_fixed_fixes_its_set(pairs, fixed):
    book = Book()
    labels, wanted = book.fresh(20), sets(20, pairs)
    book.fix(labels[np.array(fixed, int)], "why")
    at = np.array(pairs, int).reshape(-1, 2)
    for a, b in at:  # in turn, for a fixed one gives its reason to what it meets
        book.join(labels[[a]], labels[[b]])
    for a, b in at[::-1]:
        book.join(labels[[a]], labels[[b]])
    still = {wanted[each] for each in fixed}
    assert set(np.array(wanted)[book.is_fixed(labels)]) >= {wanted[each] for each in fixed}
    assert {wanted[each] for each in np.flatnonzero(book.is_fixed(labels))} <= still


@pytest.mark.parametrize("shape", [(2, 6), (3, 4), (4, 3), (6, 2)])
def test_a_rectangle_loses_whole_rows_and_columns(shape):
    book = Book()
    flat = book.fresh(12)
    rows, columns = book.split(flat, shape[0])
    book.read(flat)
    book.propagate()
    gone = book.removed(np.array([rows[1], columns[0]]))
    wanted = np.zeros(shape, bool)
    wanted[1], wanted[:, 0] = True, True
    np.testing.assert_array_equal(gone[flat].reshape(shape), wanted)
    at, unit, _ = book.units(flat)
    assert set(unit) == {*book.find(rows), *book.find(columns)}
    assert len(at) == 24


def test_merged_and_parted_again_are_the_same():
    book = Book()
    rows, columns = book.fresh(3), book.fresh(4)
    again = book.split(book.flatten(rows, columns), 3)
    for ours, theirs in zip(again, (rows, columns), strict=True):
        np.testing.assert_array_equal(book.find(ours), book.find(theirs))


def test_two_parted_axes_that_meet_share_their_parts():
    book = Book()
    a, b = book.fresh(6), book.fresh(6)
    (first, second), (other, another) = book.split(a, 2), book.split(b, 2)
    book.join(a, b)
    np.testing.assert_array_equal(book.find(first), book.find(other))
    np.testing.assert_array_equal(book.find(second), book.find(another))


def test_a_pair_that_is_part_of_itself_stays():
    book = Book()
    flat = book.fresh(4)
    rows, _ = book.split(flat, 2)
    book.join(rows, flat[:2])
    book.read(flat)
    book.propagate()
    at, unit, _ = book.units(flat)  # ends
    gone = book.removed(np.unique(unit))
    assert not gone[flat][book.is_fixed(flat)].any()
    assert len(at) <= 8
