"""State and packed parameters are partitioned as the parameters are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import nnopt_jax as nnopt

PARAMS = {"bias": jnp.zeros(6), "kernel": jax.random.normal(jax.random.key(0), (8, 6))}
SPECS = {"bias": None, "kernel": P("data", "model")}
TX = nnopt.chain(
    nnopt.pruning.magnitude(0.5),
    nnopt.compression.codebook(4, learned=True, where="kernel"),
    nnopt.quantization.uniform(8, where="bias"),
)


def _mesh():
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def test_state_follows_the_parameters():
    prune, share, quantize = nnopt.state_specs(TX, PARAMS, SPECS)
    assert tuple(prune.rest["kernel"]["mask"]) == ("data", "model")
    assert tuple(prune.rest["kernel"]["sparsity"]) == ()
    assert tuple(share.learned["kernel"][0]) == ()
    assert tuple(quantize.rest["bias"][0]["scale"]) == ()
    assert tuple(prune.count) == ()


def test_scales_are_split_along_the_axes_they_have():
    tx = nnopt.quantization.uniform(8, granularity="channel")
    specs = nnopt.state_specs(tx, PARAMS, SPECS)
    assert tuple(specs.rest["kernel"][0]["scale"]) == (None, "model")


def test_axes_that_do_not_divide_are_dropped_on_a_mesh():
    params = {"kernel": jnp.ones((8, 5))}
    specs = {"kernel": P("data", "model")}
    tx = nnopt.pruning.magnitude(0.5)
    state = nnopt.state_specs(tx, params, specs, _mesh())
    assert tuple(state.rest["kernel"]["mask"]) == ("data", None)
    uniform = nnopt.quantization.uniform(8)
    packed = uniform.pack(params, uniform.init(params))
    assert tuple(nnopt.packed_specs(packed, specs, _mesh())["kernel"].codes) == ("data", None)


def test_specs_have_the_structure_of_what_they_place():
    mesh = _mesh()
    state = TX.init(PARAMS)
    specs = nnopt.state_specs(TX, PARAMS, SPECS, mesh)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    placed = jax.jit(TX.init, out_shardings=shardings)(PARAMS)
    assert jax.tree.structure(placed) == jax.tree.structure(state)
    mask = placed[0].rest["kernel"]["mask"]
    assert mask.sharding.spec == P("data", "model")
    np.testing.assert_array_equal(mask, state[0].rest["kernel"]["mask"])


def test_packed_parameters_lie_as_told():
    mesh = _mesh()
    tx = nnopt.quantization.uniform(8, granularity="channel", where="kernel")
    packed = tx.pack(PARAMS, tx.init(PARAMS))
    specs = nnopt.packed_specs(packed, SPECS, mesh)
    placed = jax.device_put(packed, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))
    assert placed["kernel"].codes.sharding.spec == P("data", "model")
    assert placed["kernel"].scale.sharding.spec == P(None, "model")
    np.testing.assert_array_equal(
        jax.jit(nnopt.materialize)(placed)["kernel"], nnopt.materialize(packed)["kernel"]
    )


def test_a_transform_that_draws_needs_no_key_here():
    tx = nnopt.compression.codebook(4, init="random", where="kernel")
    specs = nnopt.state_specs(tx, PARAMS, SPECS)
    wanted = jax.tree.structure(tx.init(PARAMS, key=jax.random.key(0)))
    assert jax.tree.structure(specs, is_leaf=lambda x: isinstance(x, P)) == wanted


def test_what_belongs_to_all_leaves_is_replicated():
    tx = nnopt.compression.codebook(4, scope="tree", learned=True, where="**")
    specs = nnopt.state_specs(tx, PARAMS | {"bias": jnp.zeros(8)}, SPECS | {"bias": P("data")})
    assert tuple(specs.learned["*"]) == ()
    assert set(specs.rest) == {"*", "bias", "kernel"}


def test_factors_of_low_rank_lie_as_the_weight_does():
    tx = nnopt.compression.low_rank(2, where="kernel")
    packed = jax.eval_shape(lambda p: tx.pack(p, tx.init(p)), PARAMS)
    specs = nnopt.packed_specs(packed, SPECS, _mesh())["kernel"]
    assert (tuple(specs.u), tuple(specs.v)) == (("data", None), (None, "model"))
