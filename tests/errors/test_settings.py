"""What counts as a number, a whole number, a share."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnopt_jax import quantization as q
from nnopt_jax.errors import ValueRangeError
from nnopt_jax.pruning.pattern_names import parse_pattern as parse
from nnopt_jax.pruning.patterns import BlockPattern
from nnopt_jax.settings import Settings

GOOD = {
    "integer": [(3, 1, 9), (np.int8(3), 1, 9), (None, 1, 9)],
    "number": [(1.5, 0), (np.float32(0.5), 0, 1), (0, 0, 1), (None, 0), (3e38, 0)],
    "share": [(0,), (1,), (np.float32(0.5),), (lambda count: 0.5,)],
    "choice": [("a", ("a", "b"))],
    "flag": [(True,), (False,)],
    "floating": [("float32",), (np.float16,), ("bfloat16",)],
}
BAD = {
    "integer": [(3.0, 1, 9), (True, 0, 9), ("3", 1, 9), (10, 1, 9), (0, 1)],
    "number": [
        (math.nan, 0),
        (math.inf, 0),
        ("1", 0),
        (2, 0, 1),
        (True, 0, 1),
        (-1e-9, 0),
        (1e39, 0),
        (1e-45, 0),
    ],
    "share": [(1.5,), (-0.1,), (math.nan,), ("0.5",), (None,), (True,)],
    "choice": [("c", ("a", "b")), (1, ("a", "b"))],
    "flag": [(1,), (None,), ("yes",)],
    "floating": [("int8",), ("foo",), (bool,), (complex,), (None,), ("float64",), (3,)],
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


METHODS = [q.uniform, q.xnor, q.twn, q.nf4, q.fp4, q.lsq]


@pytest.mark.parametrize("method", METHODS)
def test_scales_are_floats(method):
    options = {"bits": 4} if method in (q.uniform, q.lsq) else {}
    with pytest.raises(ValueRangeError, match="scale_dtype='int8' is not a dtype of floats"):
        method(**options, scale_dtype="int8")


@pytest.mark.parametrize("pattern", [(4, True), b"2:4", (4, 0), (4, 1.0), "4:2"])
def test_what_is_no_pattern(pattern):
    settings = Settings("demo")
    parse(pattern, settings)
    with pytest.raises(ValueRangeError, match="demo: pattern="):
        settings.done()


def test_numbers_of_numpy_make_a_pattern():
    assert parse((np.int64(4), 1), Settings("demo")) == BlockPattern((4, 1))
