"""Batches: split, fed ahead, and filled up."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from nnopt_jax import parallel
from nnopt_jax.errors import CompositionError, SelectionError, ShapeError, ValueRangeError
from tests.parallel.pair import ends, pair


def batches(*rows):
    return [{"x": np.full((n, 2), i), "y": np.arange(n)} for i, n in enumerate(rows)]


def test_rows_are_split_over_data_and_fsdp():
    mesh = parallel.mesh(data=2, fsdp=2, model=2)
    split = parallel.shard_batch(batches(8)[0], mesh)
    assert split["y"].addressable_shards[0].data.shape == (2,)
    np.testing.assert_array_equal(split["y"], np.arange(8))
    whole = parallel.shard_batch(batches(3)[0], mesh, axes=[])
    assert whole["y"].is_fully_replicated


def test_this_process_reads_every_row():
    np.testing.assert_array_equal(
        parallel.process_rows(8, parallel.mesh(data=4, model=2)), np.arange(8)
    )


def test_every_batch_comes_in_order_whatever_is_on_its_way():
    mesh = parallel.mesh(data=8)
    for ahead in (1, 2, 9):
        fed = parallel.feed(batches(8, 8, 8), mesh, prefetch=ahead)
        assert [int(batch["x"][0, 0]) for batch in fed] == [0, 1, 2]


def test_an_uneven_last_batch_is_refused_filled_up_or_left_out():
    mesh = parallel.mesh(data=8)
    with pytest.raises(ShapeError, match="batch 2 has 5 rows, the first has 8; give uneven='pad'"):
        list(parallel.feed(batches(8, 5), mesh))
    assert len(list(parallel.feed(batches(8, 5), mesh, uneven="drop"))) == 1
    _, (batch, weight) = parallel.feed(batches(8, 5), mesh, uneven="pad")
    np.testing.assert_array_equal(batch["y"], [0, 1, 2, 3, 4, 4, 4, 4])
    np.testing.assert_array_equal(weight, [1, 1, 1, 1, 1, 0, 0, 0])


def test_a_batch_that_grows_is_refused():
    with pytest.raises(ShapeError, match="batch 2 has 16 rows, the first has 8"):
        list(parallel.feed(batches(8, 16), parallel.mesh(data=8), uneven="pad"))


def test_what_does_not_divide_is_told():
    mesh = parallel.mesh(data=8)
    with pytest.raises(ShapeError, match=r"12 rows do not divide into 8.* 8 or 16, or fill it up"):
        parallel.shard_batch(jnp.ones((12, 1)), mesh)
    with pytest.raises(ShapeError, match="x has 3, y has 4"):
        parallel.shard_batch({"x": np.ones(3), "y": np.ones(4)}, mesh)
    with pytest.raises(ShapeError, match="it has no axis"):
        parallel.shard_batch(np.float32(1), mesh)
    with pytest.raises(SelectionError, match="batch axis 'fsdp' is not in the mesh"):
        parallel.shard_batch(np.ones(8), mesh, axes=["fsdp"])
    with pytest.raises(ShapeError, match="9 rows cannot be filled up to 8"):
        parallel.pad_batch(np.ones(9), 8)
    with pytest.raises(ValueRangeError, match=r"uneven='padd'.*Did you mean pad(.|\n)*prefetch=0"):
        parallel.feed([], mesh, uneven="padd", prefetch=0)
    with pytest.raises(ShapeError, match="0 rows do not divide into 8 shares"):
        parallel.shard_batch(np.ones((0, 2)), mesh)
    with pytest.raises(ValueRangeError, match=r"size=8\.0"):
        parallel.process_rows(8.0, mesh)
    with pytest.raises(CompositionError, match="mesh is the str 'a'"):
        parallel.shard_batch(np.ones(8), "a")
    with pytest.raises(SelectionError, match="data, data name one axis twice"):
        parallel.feed([], mesh, axes=["data", "data"])


def test_one_batch_axis_may_be_named_alone():
    split = parallel.shard_batch(np.ones(8), parallel.mesh(data=2, model=4), axes="model")
    assert split.addressable_shards[0].data.shape == (2,)


ONE_ROW_MORE = """
    import numpy as np
    mesh = parallel.mesh(data=-1)
    parallel.shard_batch({"a": np.ones(16), "b": np.ones(16 + process)}, mesh)
"""


def test_rows_of_a_process_are_checked_too():
    fits, fails = ends(pair(ONE_ROW_MORE, ONE_ROW_MORE))
    assert "ShapeError: parallel.shard_batch" in fails[2]
    assert "a has 16, b has 17" in fails[2]
    assert "process 1 ended by ShapeError" in fits[2] or fits[0] == 0
