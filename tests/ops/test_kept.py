"""Counts against exact fractions, from numbers and from tracers."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, strategies as st

from nnopt_jax.ops.masks import count_kept

SIZES = (1, 3, 15, 1000, 16_777_218, 2**31 - 1)
compiled = jax.jit(count_kept, static_argnums=0)


@given(st.sampled_from(SIZES), st.floats(0, 1, width=32))
def test_the_count_is_the_nearest_and_one_for_both(size, share):
    part = Fraction(int(np.rint(np.float32(share) * np.float32(2**30))), 2**30)
    wanted = round(size * (1 - part))
    assert count_kept(size, share) == wanted
    assert int(compiled(size, jnp.float32(share))) == wanted
    assert abs(wanted - size * (1 - Fraction(share))) <= Fraction(1, 2) + Fraction(size, 2**30)


def test_what_is_no_number_takes_nothing_away():
    assert int(compiled(15, jnp.float32(jnp.nan))) == 15
