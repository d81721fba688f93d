"""Files of adapters: small, exact, and for one base only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import nnopt_jax as nnopt
from nnopt_jax.errors import ArtifactError, CompositionError, SelectionError, ValueRangeError
from nnopt_jax.transfer import dora, freeze, load_adapter, lora, save_adapter

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def dense():
    kernel, head = (RNG.normal(size=shape).astype(np.float32) for shape in ((256, 128), (128, 4)))
    return {
        "fc": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(128)},
        "head": jnp.asarray(head),
    }


def int4(tree):
    grid = nnopt.quantization.grouped("q4_0", group=32, where="fc/kernel")
    return grid.pack(tree, grid.init(tree))


def bytes_of(tree):
    return {
        path: [(str(x.dtype), x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(leaf)]
        for path, leaf in nnopt.tree.flatten(tree, nnopt.arrays.is_node).items()
    }


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    assert bytes_of(left) == bytes_of(right)


def trained(tx, base, steps=3):
    x, y = (jnp.asarray(RNG.normal(size=(16, n)).astype(np.float32)) for n in (256, 4))

    def loss(p):
        return jnp.square((x @ p["fc"]["kernel"] + p["fc"]["bias"][None]) @ p["head"] - y).mean()

    optimizer, params, state = optax.adam(1e-2), base, tx.init(base, key=KEY)
    moments = optimizer.init(nnopt.trainable(tx, params, state))
    values = []
    for _ in range(steps):
        value, grads = nnopt.value_and_grad(loss, tx)(params, state)
        moving = nnopt.trainable(tx, params, state)
        updates, moments = optimizer.update(grads.train, moments, moving)
        params, state = nnopt.step(tx, params, state, updates, grads)
        values.append(float(value))
    assert values[-1] < values[0]
    return tx.pack(params, state)


@pytest.mark.parametrize("adapter", [lora, dora])
def test_over_int4(adapter, tmp_path):
    base = int4(dense())
    before = bytes_of(base)
    packed = trained(adapter(2, where="fc/kernel"), base)
    save_adapter(tmp_path / "adapter.nnopt", packed, base)
    assert bytes_of(base) == before
    nnopt.save(tmp_path / "base.nnopt", base)
    small, large = ((tmp_path / f"{name}.nnopt").stat().st_size for name in ("adapter", "base"))
    assert small < large / 4
    found = load_adapter(tmp_path / "adapter.nnopt", nnopt.load(tmp_path / "base.nnopt"))
    same(found, packed)
    assert nnopt.inspect(tmp_path / "adapter.nnopt").rows[0].shape in ((256, 2), (1, 128))


def test_leaves_that_train_on_are_written_whole(tmp_path):
    base = dense()
    packed = trained(nnopt.chain(freeze("fc/*"), lora(2, where="fc/kernel", freeze=None)), base)
    save_adapter(tmp_path / "a", packed, base)
    same(load_adapter(tmp_path / "a", base | {"head": jnp.zeros((128, 4))}), packed)
    kept = nnopt.load(tmp_path / "a")
    assert sorted(x.shape for x in kept) == [(2, 128), (128, 4), (256, 2)]


def test_the_base_may_lie_on_a_mesh(tmp_path):
    base, tx = dense(), lora(2)
    packed = tx.pack(base, tx.init(base, key=KEY))
    save_adapter(tmp_path / "a", packed, base)
    mesh = jax.make_mesh((8,), ("d",), (AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("d"))
    spread = base | {"fc": base["fc"] | {"kernel": jax.device_put(base["fc"]["kernel"], split)}}
    found = load_adapter(tmp_path / "a", spread)
    same(found, packed)
    assert found["fc"]["kernel"].base.sharding == split


def test_another_base_is_refused_leaf_by_leaf(tmp_path):
    base, tx = dense(), lora(2, where="fc/kernel")
    save_adapter(tmp_path / "a", tx.pack(base, tx.init(base, key=KEY)), base)
    one = {"fc": {"kernel": base["fc"]["kernel"].at[3, 5].add(1e-7), "bias": base["fc"]["bias"]}}
    with pytest.raises(ArtifactError) as told:
        load_adapter(tmp_path / "a", one | {"heads": base["head"]})
    text = str(told.value)
    assert "2 problems" in text
    assert "fc/kernel: holds other values than the base of the adapter" in text
    assert "head: is not in this base. Did you mean heads?" in text
    with pytest.raises(
        ArtifactError, match=r"fc/kernel: is LookupQuantized.*adapter has float32\[256,1"
    ):
        load_adapter(tmp_path / "a", int4(base))


def test_the_base_may_be_a_state_of_nnx(tmp_path):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(5, 5, rngs=rngs) for _ in range(11)])

    base, tx = nnx.state(Net(nnx.Rngs(0)), nnx.Param), lora(2)
    packed = tx.pack(base, tx.init(base, key=KEY))
    save_adapter(tmp_path / "a", packed, base)
    found = load_adapter(tmp_path / "a", base)
    assert bytes_of(found) == {path: bytes_of(packed)[path] for path in bytes_of(found)}
    assert bytes_of(found).keys() == bytes_of(packed).keys()


def test_keys_among_the_parameters_are_part_of_the_base(tmp_path):
    base, tx = dense() | {"noise": jax.random.key(3)}, lora(2, where="head", freeze="head")
    packed = tx.pack(base, tx.init(base, key=KEY))
    save_adapter(tmp_path / "a", packed, base)
    found = load_adapter(tmp_path / "a", base)
    np.testing.assert_array_equal(*(jax.random.key_data(x["noise"]) for x in (found, base)))
    with pytest.raises(ArtifactError, match="noise: holds other values"):
        load_adapter(tmp_path / "a", base | {"noise": jax.random.key(4)})


def test_a_base_with_more_leaves_is_refused(tmp_path):
    base, tx = dense(), lora(2, where="head")
    save_adapter(tmp_path / "a", tx.pack(base, tx.init(base, key=KEY)), base)
    with pytest.raises(ArtifactError, match=r"(?s)2 problems.*extra: is in this base.*more: is in"):
        load_adapter(tmp_path / "a", base | {"more": jnp.ones(2), "extra": jnp.ones(2)})


def test_a_newer_adapter_is_called_so(tmp_path):
    nnopt.save(tmp_path / "a", [], metadata={"kind": "nnopt adapter 2"})
    with pytest.raises(ArtifactError, match="has version 2, this library reads 1"):
        load_adapter(tmp_path / "a", dense())


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda f, p, b: save_adapter(f, b, p), ValueRangeError, "nothing that the base lacks"),
        (lambda f, p, b: save_adapter(f, b, b), ValueRangeError, "nothing that the base lacks"),
        (lambda f, p, b: save_adapter(f, p, b | {"head": 1.0}), CompositionError, "the float 1.0"),
        (
            lambda f, p, b: save_adapter(f, p, jax.eval_shape(lambda: b)),
            CompositionError,
            r"(?s)3 problems.*fc/bias: is a shape, float32\[128\]",
        ),
    ],
)
def test_trees_that_are_no_adapter_and_base(call, kind, text, tmp_path):
    base, tx = dense(), lora(2)
    with pytest.raises(kind, match=text):
        call(tmp_path / "a", tx.pack(base, tx.init(base, key=KEY)), base)
    assert not list(tmp_path.iterdir())


def test_bad_input(tmp_path):
    base, tx = dense(), lora(2, where="fc/kernel")
    packed = tx.pack(base, tx.init(base, key=KEY))
    with pytest.raises(SelectionError, match=r"(?s)haed: is in the packed.*head: .*base alone"):
        save_adapter(tmp_path / "a", {"fc": packed["fc"], "haed": packed["head"]}, base)
    with pytest.raises(ValueRangeError, match="no leaf of the packed tree builds on the base"):
        save_adapter(tmp_path / "a", packed, jax.tree.map(lambda x: x + 1, base))
    assert not list(tmp_path.iterdir())
    nnopt.save(tmp_path / "a", base)
    with pytest.raises(ArtifactError, match="is not an adapter"):
        load_adapter(tmp_path / "a", base)
    nnopt.save(tmp_path / "a", [], metadata={"kind": "nnopt adapter 1", "base": {}})
    with pytest.raises(ArtifactError, match="malformed"):
        load_adapter(tmp_path / "a", base)
    save_adapter(tmp_path / "a", packed, base)
    told = nnopt.inspect(tmp_path / "a").metadata
    nnopt.save(tmp_path / "a", [jnp.ones(3), jnp.ones(4)], metadata=told)
    with pytest.raises(ArtifactError, match=r"malformed .*in place of"):
        load_adapter(tmp_path / "a", base)
