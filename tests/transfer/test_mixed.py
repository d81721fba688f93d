"""Both in one file: trained and compressed here, run, trained and sharded where no code is."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax import artifact
from nnopt_jax.artifact import file
from nnopt_jax.cli import main
from nnopt_jax.errors import ArtifactError, SelectionError, ShapeError
from nnopt_jax.transfer import capture, load_model, save_model

ELSEWHERE = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import nnopt_jax as nnopt

assert "flax" not in sys.modules
folder = sys.argv[1]
model = nnopt.transfer.load_model(f"{folder}/model.nnopt")
x, y = np.load(f"{folder}/x.npy"), np.load(f"{folder}/y.npy")
found = {"logits": model(x)}

def loss(params, x, y):  # of what the structure computes
    return ((model.structure.apply(params, x) - y) ** 2).mean()

dense = jax.jit(nnopt.materialize)(model.params)
slopes = jax.jit(jax.grad(loss))(dense, x, y)
found |= {f"grad/{path}": leaf for path, leaf in nnopt.tree.flatten(slopes).items()}

def train_step(params, x, y):
    tx = nnopt.quantization.uniform(8, where="out/kernel")
    state, optimizer = tx.init(params), optax.sgd(0.5)
    moving = nnopt.trainable(tx, params, state)
    _, grads = nnopt.value_and_grad(loss, tx)(params, state, x, y)
    updates, _ = optimizer.update(grads.train, optimizer.init(moving), moving)
    return tx.apply(*nnopt.step(tx, params, state, updates, grads))

stepped = jax.jit(train_step)(dense, x, y)
found |= {f"step/{path}": leaf for path, leaf in nnopt.tree.flatten(stepped).items()}

mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
spread = {
    "in": {"kernel": P(None, "model"), "bias": P("model")},
    "mid": {"kernel": P("model", None), "bias": P()},
    "out": {"kernel": P(), "bias": P()},
}
put = lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec))
sharded, rows = jax.tree.map(put, dense, spread), put(x, P("data"))
logits = jax.jit(model.structure.apply)(sharded, rows)
assert len(logits.sharding.device_set) == 8 and not logits.sharding.is_fully_replicated
found["sharded"] = logits
slopes = jax.jit(jax.grad(loss))(sharded, rows, put(y, P("data")))
found |= {f"sharded_grad/{path}": leaf for path, leaf in nnopt.tree.flatten(slopes).items()}
np.savez(f"{folder}/found.npz", **found)
"""


def apply(params, x):
    for name in ("in", "mid"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"][None])
    return x @ params["out"]["kernel"] + params["out"]["bias"][None]


def loss(params, x, y):
    return ((apply(params, x) - y) ** 2).mean()


def train_step(tx, optimizer, params, state, x, y):
    moving = nnopt.trainable(tx, params, state)
    _, grads = nnopt.value_and_grad(loss, tx)(params, state, x, y)
    updates, _ = optimizer.update(grads.train, optimizer.init(moving), moving)
    return nnopt.step(tx, params, state, updates, grads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Packed parameters, their structure, data, and the folder with the file of them."""
    folder, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    x = rng.normal(size=(16, 24)).astype(np.float32)
    y = rng.normal(size=(16, 4)).astype(np.float32)
    sizes = {"in": (24, 16), "mid": (16, 8), "out": (8, 4)}
    params = {
        name: {"kernel": jnp.asarray(rng.normal(size=shape).astype(np.float32) / 4),
               "bias": jnp.zeros(shape[1])}
        for name, shape in sizes.items()
    }  # fmt: skip
    tx = nnopt.chain(
        nnopt.pruning.magnitude(0.5, where="re:(in|mid)/kernel"),
        nnopt.compression.codebook(8, where="in/kernel"),
        nnopt.quantization.uniform(8, where="re:(mid|out)/kernel"),
    )
    state = jax.jit(tx.init)(params)
    step = jax.jit(lambda *args: train_step(tx, optax.sgd(0.1), *args))
    for _ in range(3):
        params, state = step(params, state, x, y)
    small = jax.jit(tx.pack)(params, state)
    structure = capture(apply, small, x, shapes=["b, ..."])
    save_model(folder / "model.nnopt", structure, small, metadata={"error": 0.1})
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    return small, structure, x, y, folder


@pytest.fixture(scope="module")
def elsewhere(trained):
    """What a process computes that has the file and no code of the model."""
    folder = trained[-1]
    command = [sys.executable, "-W", "error", "-c", ELSEWHERE, str(folder)]
    subprocess.run(command, check=True, cwd=folder)
    with np.load(folder / "found.npz") as found:
        return dict(found)


def under(found, prefix):
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def test_outputs_elsewhere_are_the_same_to_the_bit(trained, elsewhere):
    small, _, x, _, _ = trained
    expected = jax.jit(lambda p, x: apply(nnopt.materialize(p), x))(small, x)
    np.testing.assert_array_equal(elsewhere["logits"], expected)


def test_gradients_elsewhere_are_the_same(trained, elsewhere):
    small, _, x, y, _ = trained
    slopes = jax.jit(jax.grad(loss))(jax.jit(nnopt.materialize)(small), x, y)
    for path, slope in nnopt.tree.flatten(slopes).items():
        assert float(jnp.abs(slope).max()) > 1e-3  # there is something to compare
        np.testing.assert_allclose(under(elsewhere, "grad/")[path], slope, atol=1e-7)


def test_a_step_of_training_elsewhere_is_the_same(trained, elsewhere):
    small, _, x, y, _ = trained
    tx, dense = nnopt.quantization.uniform(8, where="out/kernel"), jax.jit(nnopt.materialize)(small)

    @jax.jit
    def step(params, x, y):
        return tx.apply(*train_step(tx, optax.sgd(0.5), params, tx.init(params), x, y))

    moved = step(dense, x, y)
    for path, leaf in nnopt.tree.flatten(moved).items():
        np.testing.assert_allclose(under(elsewhere, "step/")[path], leaf, atol=1e-6)
    assert not np.allclose(under(elsewhere, "step/")["in/kernel"], dense["in"]["kernel"], atol=1e-4)


def test_shards_elsewhere_give_the_same(trained, elsewhere):
    np.testing.assert_allclose(elsewhere["sharded"], elsewhere["logits"], atol=2e-6)
    for path, slope in under(elsewhere, "grad/").items():
        np.testing.assert_allclose(under(elsewhere, "sharded_grad/")[path], slope, atol=2e-6)


def test_the_file_holds_both(trained, capsys):
    small, structure, _, _, folder = trained
    path = folder / "model.nnopt"
    back = nnopt.load(path)  # the parameters alone
    assert jax.tree.structure(back) == jax.tree.structure(small)
    jax.tree.map(np.testing.assert_array_equal, back, small)
    model = load_model(path)
    assert model.metadata == {"error": 0.1}
    assert str(model.structure) == str(structure)

    told = nnopt.inspect(path)
    assert told.program_bytes == len(structure.to_bytes())
    parts = sum(row.file_bytes for row in told.rows) + told.overhead_bytes + told.program_bytes
    assert parts == pytest.approx(told.file_bytes)
    assert told.file_bytes == os.path.getsize(path)
    assert 0 < told.overhead_bytes < 600
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"{told.program_bytes:,}" in next(li for li in shown.splitlines() if "program" in li)
    assert "float32[b,24] -> float32[b,4]" in shown


def test_a_file_without_a_program_has_the_same_format(trained, tmp_path):
    small = trained[0]
    nnopt.save(tmp_path / "plain.nnopt", small)
    data = (tmp_path / "plain.nnopt").read_bytes()
    assert data[8 + int.from_bytes(data[:8], "little")] == file.VERSION == 3
    assert nnopt.inspect(tmp_path / "plain.nnopt").program_bytes == 0
    with pytest.raises(ArtifactError, match=r"plain.nnopt: holds parameters and no structure"):
        load_model(tmp_path / "plain.nnopt")


def test_a_file_with_a_program_has_the_same_format(trained):
    data = (trained[-1] / "model.nnopt").read_bytes()
    assert data[8 + int.from_bytes(data[:8], "little")] == file.VERSION == 3


def test_wrong_parameters_are_refused_before_anything_is_written(trained, tmp_path):
    small, structure, *_ = trained
    with pytest.raises(SelectionError, match="save_model: out/bias: is missing"):
        save_model(tmp_path / "a.nnopt", structure, small | {"out": {"kernel": jnp.ones((8, 4))}})
    wrong = small | {"in": small["in"] | {"kernel": jnp.ones(1)}}
    with pytest.raises(ShapeError, match=r"save_model: in/kernel: is float32\[1\], the structure"):
        save_model(tmp_path / "a.nnopt", structure, wrong)
    assert not list(tmp_path.iterdir())


def test_a_program_of_another_model_is_refused(trained, tmp_path):
    structure = trained[1]
    path = tmp_path / "wrong.nnopt"
    artifact.save(path, {"w": jnp.ones(1)}, program=structure.to_bytes())
    with pytest.raises(ArtifactError, match=r"(?s)wrong.nnopt: load_model: .*in/bias: is missing"):
        load_model(path)
    artifact.save(path, {"w": jnp.ones(1)}, program=b"something else")
    with pytest.raises(ArtifactError, match="are not a structure"):
        load_model(path)
    with pytest.raises(ValueError, match="program is of type str, not bytes"):
        artifact.save(path, {"w": jnp.ones(1)}, program="something else")


def test_damage_and_size_are_told(trained, tmp_path):
    data = bytearray((trained[-1] / "model.nnopt").read_bytes())
    data[len(data) // 3] ^= 16  # in the program
    path = tmp_path / "damaged.nnopt"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="the file is damaged"):
        load_model(path)
    with pytest.raises(ArtifactError, match="max_bytes is 3000"):
        load_model(trained[-1] / "model.nnopt", max_bytes=3000)
