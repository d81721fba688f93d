"""Arrays of one process go to the devices of all."""

from __future__ import annotations

from tests.parallel.pair import ends, pair

BODY = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from nnopt_jax.tree.devices import place

    mesh = parallel.mesh(data=-1)
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in [(), ("data",)])
    here = jax.device_put(jnp.arange(-8, 8, dtype=jnp.int4), jax.local_devices()[0])
    given = {"here": here, "numpy": np.ones(2, np.float16), "key": jax.random.key(3), "none": None}
    placed = place(given, {"here": split, "numpy": whole, "key": whole, "none": None})
    assert placed["here"].sharding == split and placed["key"].sharding == whole
    assert placed["none"] is None and placed["numpy"].dtype == np.float16
    again = place(placed, {"here": whole, "numpy": whole, "key": whole, "none": None})
    np.testing.assert_array_equal(np.asarray(again["here"]), np.arange(-8, 8))
    np.testing.assert_array_equal(jax.random.key_data(again["key"]), [0, 3])
"""


def test_local_arrays_and_keys_reach_all_processes():
    run = ends(pair(BODY, BODY))
    assert [code for code, *_ in run] == [0, 0], run
