"""What counts as a number, a whole number, a share."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnopt_jax.errors import ValueRangeError
from nnopt_jax.settings import Settings

GOOD = {
    "integer": [(3, 1, 9), (np.int8(3), 1, 9), (None, 1, 9)],
    "number": [(1.5, 0), (np.float32(0.5), 0, 1), (0, 0, 1), (None, 0)],
    "share": [(0,), (1,), (np.float32(0.5),), (lambda count: 0.5,)],
    "choice": [("a", ("a", "b"))],
    "flag": [(True,), (False,)],
}
BAD = {
    "integer": [(3.0, 1, 9), (True, 0, 9), ("3", 1, 9), (10, 1, 9), (0, 1)],
    "number": [(math.nan, 0), (math.inf, 0), ("1", 0), (2, 0, 1), (True, 0, 1), (-1e-9, 0)],
    "share": [(1.5,), (-0.1,), (math.nan,), ("0.5",), (None,), (True,)],
    "choice": [("c", ("a", "b")), (1, ("a", "b"))],
    "flag": [(1,), (None,), ("yes",)],
}


def _test(kind, arguments):
    settings = Settings("demo")
    options = {"none": True} if kind in ("integer", "number") else {}
    getattr(settings, kind)("value", *arguments, **options)
    settings.done()


@pytest.mark.parametrize(("kind", "case"), [(k, c) for k, cases in GOOD.items() for c in cases])
def test_good(kind, case):
    _test(kind, case)


@pytest.mark.parametrize(("kind", "case"), [(k, c) for k, cases in BAD.items() for c in cases])
def test_bad(kind, case):
    with pytest.raises(ValueRangeError, match="demo: value="):
        _test(kind, case)


def test_an_open_bound():
    settings = Settings("demo")
    settings.number("rate", 0, 0, 1, above=True)
    with pytest.raises(ValueRangeError, match="rate=0 is not a number above 0 and at most 1"):
        settings.done()
