"""What equations cost, in closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from nnopt_jax.trace.primitives import Same, rule_of
from tests.trace.primitives.cases import convolved

X = jnp.ones((4, 6))


def last(function, *args):
    return rule_of(jax.make_jaxpr(function)(*args).jaxpr.eqns[-1])


CLOSED_FORMS = {
    "dot": (jnp.matmul, (X, jnp.ones((6, 5))), 4 * 6 * 5, 2 * 4 * 6 * 5, 0),
    "batched dot": (jnp.matmul, (jnp.ones((3, 4, 6)), jnp.ones((3, 6, 5))), 360, 720, 0),
    "product": (jnp.multiply, (X, X), 0, 24, 0),
    "convolution": (
        convolved(padding="SAME"),
        (jnp.ones((2, 8, 3)), jnp.ones((3, 3, 5))),
        2 * 8 * 3 * 3 * 5,
        2 * 2 * 8 * 3 * 3 * 5,
        0,
    ),
    "depthwise convolution": (
        convolved(padding="SAME", feature_group_count=4),
        (jnp.ones((2, 8, 4)), jnp.ones((3, 1, 4))),
        2 * 8 * 3 * 4,
        2 * 2 * 8 * 3 * 4,
        0,
    ),
    "groups of batches": (
        convolved(padding="SAME", batch_group_count=2),
        (jnp.ones((4, 8, 3)), jnp.ones((3, 3, 6))),
        2 * 8 * 3 * 3 * 6,
        2 * 2 * 8 * 3 * 3 * 6,
        0,
    ),
    # Of nine positions the five even ones fall on two entries, the others on one.
    "transposed convolution": (
        convolved(padding=((2, 2),), lhs_dilation=(2,)),
        (jnp.ones((1, 4, 2)), jnp.ones((3, 2, 5))),
        (5 * 2 + 4) * 2 * 5,
        2 * (5 * 2 + 4) * 2 * 5,
        0,
    ),
    "ragged rows": (lax.ragged_dot, (X, jnp.ones((3, 6, 5)), jnp.asarray([1, 3, 0])), 120, 240, 0),
    "sum": (lambda x: x.sum(1), (X,), 0, 4 * 5, 0),
    "sum of all": (jnp.sum, (X,), 0, 23, 0),
    "sum over one entry": (lambda x: x.sum(0), (X[:1],), 0, 0, 0),
    "argmax": (lambda x: lax.argmax(x, 1, jnp.int32), (X,), 0, 4 * 5, 0),
    "running sum": (lambda x: lax.cumsum(x, 1), (X,), 0, 24, 0),
    "pooling": (
        lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 2), (2, 2), "VALID"),
        (X,),
        0,
        6 * 3,
        0,
    ),
    "windows of one entry": (
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 1), (1, 1), "VALID"),
        (X,),
        0,
        0,
        0,
    ),
    "strided windows of one entry": (
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 1), (2, 1), "VALID"),
        (X,),
        0,
        0,
        0,
    ),
    "scatter": (lambda x: x.at[jnp.asarray([1, 2])].add(1.0), (X,), 0, 12, 0),
    "update": (lambda x: lax.dynamic_update_slice(x, x[:2], (1, 0)), (X,), 0, 0, 0),
    "fifth power": (lambda x: x**5, (X,), 0, 3 * 24, 0),
    "inverse square": (lambda x: x**-2, (X,), 0, 2 * 24, 0),
    "cast": (lambda x: x.astype(jnp.bfloat16), (X,), 0, 24, 0),
    "sigmoid": (jax.lax.logistic, (X,), 0, 3 * 24, 24),
    "exponential": (jnp.exp, (X,), 0, 0, 24),
    "transpose": (jnp.transpose, (X,), 0, 0, 0),
    "empty": (jnp.matmul, (jnp.ones((0, 6)), jnp.ones((6, 5))), 0, 0, 0),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_form(name):
    function, args, macs, operations, transcendentals = CLOSED_FORMS[name]
    rule = last(function, *args)
    assert (rule.products, rule.operations, rule.transcendentals) == (
        macs,
        operations,
        transcendentals,
    )


def test_cast_that_only_fixes_a_weak_type_is_free():
    rule = last(lambda x: lax.convert_element_type(x, jnp.float32), 1.0)
    assert (rule.operations, rule.same) == (0, Same.IDENTITY)


def test_unknown_costs_are_none():
    rule = last(lambda x: lax.sort(x), X)
    assert rule.flops is rule.operations is rule.transcendentals is None
