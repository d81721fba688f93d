"""n of every m: which are kept, and the numbers of the choices."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nnopt_jax.ops.masks import join_groups, keep_n_of_m, split_groups, subset_of_rank, subset_rank


@pytest.mark.parametrize("shape", [(8,), (8, 3), (2, 4, 3)])
def test_kept_are_the_greatest_of_each_group(shape):
    """The oracle sorts one group after another, columns and leading axes in plain loops."""
    scores = np.random.default_rng(0).integers(-4, 5, shape).astype(np.float32)
    wanted = np.zeros(shape, bool)
    axis = max(len(shape) - 2, 0)
    lines = np.moveaxis(scores, axis, -1)
    for at in np.ndindex(lines.shape[:-1]):
        for start in range(0, lines.shape[-1], 4):
            order = sorted(range(4), key=lambda i: (-lines[at][start + i], i))
            for i in order[:2]:
                np.moveaxis(wanted, axis, -1)[(*at, start + i)] = True
    np.testing.assert_array_equal(keep_n_of_m(jnp.asarray(scores), 2, 4), wanted)
    again = join_groups(split_groups(jnp.asarray(scores), 4), shape)
    np.testing.assert_array_equal(again, scores)


def test_never_more_than_n_are_kept():
    odd = jnp.array([jnp.nan, jnp.nan, jnp.nan, 1.0, -jnp.inf, -jnp.inf, -jnp.inf, -jnp.inf])
    np.testing.assert_array_equal(keep_n_of_m(odd, 2, 4), [1, 1, 0, 0, 1, 1, 0, 0])


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 4), (1, 8), (8, 8), (3, 7)])
def test_every_choice_has_its_number(n, m):
    """In colexicographic order, listed by itertools."""
    choices = sorted(itertools.combinations(range(m), n), key=lambda places: places[::-1])
    kept = np.array([[place in places for place in range(m)] for places in choices])
    ranks = np.arange(math.comb(m, n))
    np.testing.assert_array_equal(subset_rank(jnp.asarray(kept), n), ranks)
    np.testing.assert_array_equal(subset_of_rank(jnp.asarray(ranks), n, m), kept)


def test_parts_of_a_mesh_are_decoded_where_they_lie():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rank = jnp.arange(8, dtype=jnp.uint32) % 6
    here = jax.shard_map(
        lambda rank: subset_of_rank(rank, 2, 4),
        mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"),
    )  # fmt: skip
    np.testing.assert_array_equal(jax.jit(here)(rank), subset_of_rank(rank, 2, 4))
    explicit = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    split = jax.device_put(rank, NamedSharding(explicit, PartitionSpec("data")))
    np.testing.assert_array_equal(subset_of_rank(split, 2, 4), subset_of_rank(rank, 2, 4))


@pytest.mark.parametrize(("n", "m"), [(16, 32), (60, 64)])
def test_large_groups_do_not_overflow(n, m):
    rng = np.random.default_rng(0)
    kept = np.array([rng.permutation(m) < n for _ in range(20)] + [np.arange(m) >= m - n])
    ranks = subset_rank(jnp.asarray(kept), n)
    wanted = [
        sum(math.comb(int(p), i + 1) for i, p in enumerate(np.flatnonzero(row))) for row in kept
    ]
    np.testing.assert_array_equal(ranks, wanted)
    assert wanted[-1] == math.comb(m, n) - 1
    np.testing.assert_array_equal(subset_of_rank(ranks, n, m), kept)
