"""Plans: what is split, why, and what is told where it cannot be."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn, nnx
from jax.sharding import AbstractMesh, AxisType, PartitionSpec as P

import nnopt_jax as nnopt
from nnopt_jax import parallel
from nnopt_jax.errors import SelectionError, ShapeError
from tests.parallel import networks


def shapes(**leaves):
    return {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in leaves.items()}


def rows(plan):
    return {row.path: (tuple(row.spec), row.reason) for row in plan.rows}


def test_rules_come_first_annotations_next_and_the_rest_is_split_fully():
    params = shapes(a=(8, 6), b=(4, 6), c=(6, 8), d=(3,), e=(16, 16), f=(8, 6))
    plan = parallel.specs(
        params,
        parallel.mesh(fsdp=4, model=2),
        [("a", (None, "model")), ("re:^[ae]$", None), ("f", P("model"))],
        annotations={"a": P("model"), "b": P("model"), "c": None},
        least=0,
    )
    assert rows(plan) == {
        "a": (("fsdp", "model"), "rule 1, fsdp"),
        "b": (("model",), "annotation"),  # 4 rows by 2, not by 8, and 6 columns not by 4
        "c": ((None, "fsdp"), "fsdp"),
        "d": ((), "no axis of (3,) divides by 4"),
        "e": ((), "rule 2"),
        "f": ((("model", "fsdp"),), "rule 3, fsdp"),
    }
    assert plan.used["a"] == P(None, "model")
    assert plan.used["f"] == P("model")


def test_bytes_of_a_device_are_counted_from_shares():
    plan = parallel.specs(shapes(w=(8, 16), b=(3,)), parallel.mesh(fsdp=8), least=0)
    assert (plan.bytes, plan.device_bytes) == (512 + 12, 64 + 12)
    placed = parallel.shard({"w": jnp.ones((8, 16)), "b": jnp.ones(3)}, plan)
    assert sum(x.addressable_shards[0].data.nbytes for x in placed.values()) == plan.device_bytes


def test_a_plan_is_json_and_needs_no_devices():
    mesh = AbstractMesh((64, 8), ("fsdp", "model"), axis_types=(AxisType.Auto,) * 2)
    plan = parallel.specs(shapes(w=(4096, 4096)), mesh, [("w", ("model",))])
    assert json.loads(json.dumps(plan.to_json()))["rows"][0]["device_bytes"] == 4 * 4096**2 // 512
    with pytest.raises(SelectionError, match="AbstractMesh, which has no devices"):
        _ = plan.shardings


def test_all_that_is_wrong_with_rules_is_told_at_once():
    params = shapes(**{"up": (6, 4), "down": (4, 6)})
    mesh = parallel.mesh(data=2, model=4)
    with pytest.raises(ShapeError) as error:
        parallel.specs(
            params, mesh, [("up", ("model", "model", None)), ("down", (("data", "mdl"),))]
        )
    told = str(error.value)
    assert "up: rule 1 names the mesh axis 'model' 2 times" in told
    assert "up: rule 1 splits 3 axes, and the leaf has 2: (6, 4)" in told
    assert "down: rule 2 names the mesh axis 'mdl'. Did you mean model?" in told
    with pytest.raises(ShapeError, match=r"up: rule 1 splits axis 0 of size 6 into 4 \(model\)"):
        parallel.specs(params, mesh, [("up", ("model",))])


def test_rules_that_do_nothing_are_told():
    mesh = parallel.mesh(model=8)
    with pytest.raises(SelectionError) as error:
        parallel.specs(shapes(w=(8, 8)), mesh, [("*", None), ("w", ("model",)), ("v", None)])
    told = str(error.value)
    assert "rule 2 'w' only matches leaves that earlier rules have" in told
    assert "rule 3 'v' matched no leaf. Nearest: w" in told
    with pytest.raises(SelectionError, match="rule 1 is 'w'; give a pair"):
        parallel.specs(shapes(w=(8, 8)), mesh, ["w"])
    with pytest.raises(SelectionError, match="fsdp='fdsp' is not an axis of the mesh: model"):
        parallel.specs(shapes(w=(8, 8)), mesh, fsdp="fdsp")
    with pytest.raises(SelectionError, match="'typo' matched no leaf"):
        parallel.specs(shapes(w=(8, 8)), mesh, where="typo")
    for entry in (3, ("model", 3), P.UNCONSTRAINED):
        with pytest.raises(SelectionError, match="an entry is the name of a mesh axis"):
            parallel.specs(shapes(w=(8, 8)), mesh, [("w", (entry,))])
    with pytest.raises(SelectionError, match="w: is annotated by 'model'; give a PartitionSpec"):
        parallel.specs(shapes(w=(8, 8)), mesh, annotations={"w": "model"})
    with pytest.raises(SelectionError, match=r"v: is annotated, and no leaf"):
        parallel.specs(shapes(w=(8, 8)), mesh, annotations={"v": P("model")})


def test_annotations_of_linen_and_nnx():
    class Both(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
            return nn.Dense(8, kernel_init=init)(x)

    mesh = parallel.mesh(model=8)
    boxed = jax.eval_shape(Both().init, jax.random.key(0), jnp.ones((1, 4)))["params"]
    plan = parallel.specs(nn.unbox(boxed), mesh, annotations=nn.get_partition_spec(boxed))
    assert rows(plan)["Dense_0/kernel"] == ((None, "model"), "annotation")

    with jax.set_mesh(mesh):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
        state = nnx.state(nnx.Linear(4, 8, kernel_init=init, rngs=nnx.Rngs(0)), nnx.Param)
    plan = parallel.specs(
        nnx.to_pure_dict(state), mesh, annotations=nnx.to_pure_dict(nnx.get_partition_spec(state))
    )
    assert rows(plan)["kernel"] == ((None, "model"), "annotation")


OPTIMIZERS = {
    "adamw": optax.adamw(1e-3),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-3)),
    "adafactor": optax.adafactor(1e-3, min_dim_size_to_factor=8),
    "several": optax.multi_transform(
        {"a": optax.adamw(1e-3), "b": optax.set_to_zero()},
        lambda tree: jax.tree_util.tree_map_with_path(
            lambda keys, _: "a" if "kernel" in jax.tree_util.keystr(keys) else "b", tree
        ),
    ),
    "accumulating": optax.MultiSteps(optax.adamw(1e-3), 2),
    "injected": optax.inject_hyperparams(optax.adamw)(1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_of_any_kind_keep_their_state_in_shares(name):
    params = {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}
    plan = parallel.specs(params, parallel.mesh(fsdp=8), least=0)
    optimizer = OPTIMIZERS[name]
    run = parallel.train_step(lambda p, x: (x @ p["kernel"] + p["bias"][None]).sum(), optimizer,
                              plan=plan)  # fmt: skip
    state = run.init(params)
    for x in jax.tree.leaves(state.opt_state):
        if x.size > 1:
            assert x.addressable_shards[0].data.nbytes * 8 == x.nbytes
    state, value = run(state, jnp.ones((8, 64)))
    assert np.isfinite(value)
    assert state.params["kernel"].sharding == plan.shardings["kernel"]


@pytest.mark.slow
def test_nodes_are_split_array_by_array():
    params = {"kernel": jax.random.normal(jax.random.key(0), (64, 128))}
    tx = nnopt.chain(nnopt.pruning.magnitude(0.5), nnopt.compression.codebook(16))
    packed = tx.pack(params, tx.init(params))
    plan = parallel.specs(packed, parallel.mesh(fsdp=8), least=256)
    assert plan.rows[0].reason == "fsdp of 2 of 3 arrays"  # the table of 16 values stays whole
    placed = parallel.shard(packed, plan)
    np.testing.assert_array_equal(
        jax.jit(nnopt.materialize)(placed)["kernel"], jax.jit(nnopt.materialize)(packed)["kernel"]
    )


def test_parameters_are_born_in_place():
    plan = networks.plan({"fsdp": 8})
    born = parallel.sharded_init(networks.MODEL.init, plan)(jax.random.key(0))
    for path, x in nnopt.tree.flatten(born).items():
        wanted = nnopt.tree.flatten(networks.params())[path]
        np.testing.assert_allclose(x, wanted, rtol=1e-6)  # another program, another rounding
        assert x.sharding == nnopt.tree.flatten(plan.shardings)[path]


def test_a_rule_that_no_packed_array_can_follow_is_told():
    params = {"kernel": jax.random.normal(jax.random.key(0), (8, 6))}  # 6 codes fill no byte
    tx = nnopt.quantization.uniform(4)
    packed = tx.pack(params, tx.init(params))
    plan = parallel.specs(packed, parallel.mesh(model=8), [("kernel", ("model",))])
    assert plan.rows[0].reason == "rule 1, which no packed array can follow"
    assert plan.rows[0].bytes == plan.rows[0].device_bytes
