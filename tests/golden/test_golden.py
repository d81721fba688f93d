"""What earlier versions stored loads, bit for bit: expected values come from NumPy's files."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import nnopt_jax as nnopt
from nnopt_jax import recipe as recipes
from nnopt_jax.arrays.nodes import NODE_TYPES
from nnopt_jax.artifact.file import unseal
from nnopt_jax.errors import ArtifactError
from nnopt_jax.interop import Checkpoints, read_metadata, read_weights
from nnopt_jax.transfer import Structure, load_adapter, load_model
from tests.golden import golden_run, models
from tests.golden.makers import MAKERS, files_of, nodes_of, place_of, read_index
from tests.golden.values import (
    Values,
    array_bytes,
    array_of,
    outline,
    read_values,
    require_equal,
    sha256,
    values_of,
)
from tests.golden.write import write

HERE = Path(__file__).parent
INDEX = read_index(HERE)


# Each program runs once: compiling is what takes the time.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def entries(*kinds: str) -> list[str]:
    return [name for name, entry in INDEX.items() if entry["kind"] in kinds]


def file(name: str, ending: str) -> Path:
    return place_of(HERE, f"{name}{ending}")


@functools.cache
def loaded(name: str) -> Any:
    """The tree of an entry, decoded once for all tests."""
    return nnopt.load(file(name, ".nnopt"))


def wanted(name: str, ending: str = ".npz") -> Values:
    return read_values(file(name, ending))


def under(values: Values, part: str) -> dict[str, np.ndarray]:
    """The arrays of one part of a tree, by what is left of their paths."""
    start = f"{part}/"
    return {
        path.removeprefix(start): array_of(*x)
        for path, x in values.items()
        if path.startswith(start)
    }


def shown(tree: Any) -> Any:
    """The dense arrays: compiled as one, but for arrays that `jit` would not hand through."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=nnopt.arrays.is_node)
    nodes = {at: leaf for at, leaf in enumerate(leaves) if nnopt.arrays.is_node(leaf)}
    dense = dict(enumerate(leaves)) | jax.jit(nnopt.materialize, compiler_options=FAST)(nodes)
    return jax.tree.unflatten(structure, [dense[at] for at in range(len(leaves))])


def same(left: Any, right: Any) -> None:
    """The same nodes with the same arrays."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    require_equal(left, values_of(right))


# ---------------------------------------------------------------------- the collection


def test_nobody_rewrote_a_file():
    kept = {path: total for entry in INDEX.values() for path, total in entry["files"].items()}
    found = {path.relative_to(HERE).as_posix(): sha256(path)
             for name in INDEX for path in files_of(HERE, name)}  # fmt: skip
    assert found == kept


def test_every_entry_is_written():
    assert INDEX.keys() == MAKERS.keys()


def test_every_node_class_has_a_golden_file():
    """A new class needs an entry of its own: see `tests/golden/write.py`."""
    found = {node for name in entries("tree") for node in INDEX[name]["nodes"]}
    ours = (cls for cls in NODE_TYPES.values() if cls.__module__.startswith("nnopt_jax."))
    assert {cls.file_name() for cls in ours} == found


def test_golden_files_are_small():
    total = sum(path.stat().st_size for name in INDEX for path in files_of(HERE, name))
    assert total < 1_500_000


def test_golden_files_are_never_rewritten(tmp_path):
    name, other = "weights/tensors", "weights/archive"
    write(tmp_path, [name])
    place = place_of(tmp_path, name).parent
    first = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(FileExistsError, match=rf"never rewritten.*{name}"):
        write(tmp_path, [other, name])
    assert {path.name: path.read_bytes() for path in place.iterdir()} == first
    write(tmp_path, [other])
    assert sorted(json.loads((tmp_path / "index.json").read_text())) == [other, name]
    with pytest.raises(KeyError, match="no such entry: weights/tensor;"):
        write(tmp_path, ["weights/tensor"])


# ---------------------------------------------------------------------- trees


@pytest.mark.parametrize("name", entries("tree"))
def test_a_tree_loads_bit_for_bit(name, tmp_path):
    tree = loaded(name)
    require_equal(shown(tree), wanted(name))
    assert sorted(cls.file_name() for cls in nodes_of(tree)) == INDEX[name]["nodes"]
    assert array_bytes(tree) <= INDEX[name]["bytes"]  # packed as it was
    assert nnopt.inspect(file(name, ".nnopt")).metadata == INDEX[name]["metadata"]
    nnopt.save(tmp_path / "again.nnopt", tree, metadata=INDEX[name]["metadata"])
    same(nnopt.load(tmp_path / "again.nnopt"), tree)


@pytest.mark.parametrize("name", entries("tree", "model", "adapter"))
def test_files_stay_in_the_format_they_were_written_in(name):
    for path in files_of(HERE, name):
        if path.suffix == ".nnopt":
            _, version = unseal(path.read_bytes())
            old = 2 if INDEX[name]["kind"] == "model" else 1
            assert version == (3 if name.startswith("format3/") else old)


@pytest.mark.parametrize("name", ["coded/containers", "format3/containers"])
def test_containers_come_back_as_they_were(name):
    assert outline(loaded(name)) == INDEX[name]["metadata"]["outline"]


# ---------------------------------------------------------------------- programs


def unreadable(entry: dict[str, Any]) -> str:
    """Why a program may be beyond this version of jax, which is not a fault of this library."""
    return (f"jax {entry['jax']} wrote the program; jax promises to read programs for six months, "
            f"and {jax.__version__} does not read it")  # fmt: skip


def run_program(entry: dict[str, Any], call: Any) -> Any:
    """What a program computes; skips where a newer jax no longer reads it."""
    try:
        return call()
    except ArtifactError as error:
        if jax.__version__ == entry["jax"] or "cannot read it" not in str(error):
            raise
        pytest.skip(unreadable(entry))


def require_close(outputs: Any, expected: dict[str, np.ndarray]) -> None:
    """Structure, dtypes and shapes exactly, values but for the order of sums."""
    found = {path: array_of(*x) for path, x in values_of(outputs).items()}
    assert {path: (x.dtype, x.shape) for path, x in found.items()} == {
        path: (x.dtype, x.shape) for path, x in expected.items()
    }
    for path, x in expected.items():
        np.testing.assert_allclose(found[path], x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", entries("model"))
def test_a_model_loads_and_runs(name, tmp_path):
    entry, calls = INDEX[name], wanted(name, ".calls.npz")
    params = nnopt.load(file(name, ".nnopt"))
    require_equal(shown(params), wanted(name))
    model = load_model(file(name, ".nnopt"))
    same(model.params, params)
    assert array_bytes(params) <= entry["bytes"]
    assert model.metadata == entry["metadata"]
    inputs = under(calls, "inputs")
    outputs = run_program(entry, lambda: model(*(inputs[str(at)] for at in range(2))))
    require_close(outputs, under(calls, "outputs"))
    nnopt.transfer.save_model(tmp_path / "again.nnopt", model.structure, params)
    again = load_model(tmp_path / "again.nnopt")
    same(again.params, params)
    assert again.structure.to_bytes() == model.structure.to_bytes()


@pytest.mark.parametrize("name", entries("structure"))
def test_a_structure_without_weights_runs(name):
    entry, calls = INDEX[name], wanted(name, ".calls.npz")
    data = file(name, ".bin").read_bytes()
    structure = Structure.from_bytes(data)
    assert Structure.from_bytes(structure.to_bytes()).describe() == structure.describe()
    shapes = {path: [str(x.dtype), list(x.shape)]
              for path, x in nnopt.tree.flatten(structure.parameters).items()}  # fmt: skip
    assert shapes == entry["shapes"]
    assert structure.construct() == 0.5
    drawn = structure.initialize(jax.random.key(0))
    assert (np.asarray(drawn["head"]) == 0.5).all()
    assert not np.asarray(drawn["layers"][0]["bias"]).any()
    assert 0.015 < np.asarray(drawn["embed"]).std() < 0.025
    flat = under(calls, "params")
    layer = {part: flat[f"layers/0/{part}"] for part in ("kernel", "bias")}
    params = {"embed": flat["embed"], "head": flat["head"], "layers": [layer]}
    inputs = [under(calls, "inputs")[str(at)] for at in range(2)]
    outputs = run_program(entry, lambda: structure.apply(params, *inputs))
    require_close(outputs, under(calls, "outputs"))

    def total(params):
        return structure.apply(params, *inputs)["logits"].sum()

    slope = jax.grad(total)(params)["head"]  # of a product: what it was multiplied with
    np.testing.assert_allclose(slope, np.asarray(outputs["hidden"][0]).sum(0)[:, None]
                               * np.ones((1, 3)), rtol=1e-4, atol=1e-5)  # fmt: skip
    none = jax.tree.map(jnp.asarray, params | {"head": np.zeros((24, 3), np.float32)})
    assert structure.train(none, *inputs, jax.random.key(1)).tolist() == [[0.0] * 3] * 3


@pytest.mark.parametrize("name", entries("exported"))
def test_a_program_of_packed_arguments_runs(name):
    entry = INDEX[name]
    params = nnopt.load(file(name, ".nnopt"))
    require_equal(shown(params), wanted(name))
    program = export.deserialize(bytearray(file(name, ".bin").read_bytes()))
    x = np.eye(16, dtype=np.float32)[:4]
    assert program.in_tree == jax.tree.structure(((params, x), {}))
    try:
        program.mlir_module()
    except Exception:
        if jax.__version__ == entry["jax"]:
            raise
        pytest.skip(unreadable(entry))
    outputs = jax.jit(program.call, compiler_options=FAST)(params, x)
    require_close(outputs, {path: array_of(*bits)[:4] for path, bits in wanted(name).items()})


# ---------------------------------------------------------------------- adapters, weights


@pytest.mark.parametrize("name", entries("adapter"))
def test_an_adapter_fits_its_base(name, tmp_path):
    base = nnopt.load(file(name, ".base.nnopt"))
    learned = load_adapter(file(name, ".nnopt"), base)
    require_equal(shown(learned), wanted(name))
    assert array_bytes(learned) <= INDEX[name]["bytes"]
    nnopt.transfer.save_adapter(tmp_path / "again.nnopt", learned, base)
    same(load_adapter(tmp_path / "again.nnopt", base), learned)
    changed = base | {"bias": base["bias"] + 1}
    with pytest.raises(ArtifactError, match="bias: holds other values"):
        load_adapter(file(name, ".nnopt"), changed)


@pytest.mark.parametrize("name", entries("safetensors", "npz"))
def test_weights_are_read(name):
    ending = ".safetensors" if INDEX[name]["kind"] == "safetensors" else ".weights.npz"
    require_equal(read_weights(file(name, ending)), wanted(name))
    if "metadata" in INDEX[name]:
        assert read_metadata(file(name, ending)) == INDEX[name]["metadata"]


# ---------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def restored():
    """What a checkpoint holds, rebuilt of its manifest."""
    (name,) = entries("checkpoint")
    return name, *Checkpoints(place_of(HERE, name)).restore()


def test_a_checkpoint_is_restored_without_a_target(restored, tmp_path):
    name, state, metadata = restored
    assert metadata == INDEX[name]["metadata"]
    assert state["plain"] == models.PLAIN
    assert isinstance(state["host"][0], np.ndarray)
    arrays = {part: state[part] for part in state if part != "plain"}
    require_equal(shown(arrays), wanted(name))
    assert array_bytes(arrays) <= INDEX[name]["bytes"]
    with Checkpoints(tmp_path) as again:
        again.save(8, arrays)
        same(again.restore()[0], arrays)


def test_a_checkpoint_is_restored_into_a_target(restored):
    """Of shapes, where there are arrays of JAX, and with the containers of the optimizer."""
    name, state, _ = restored
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.Array) else x, state
    )
    trained = {part: target["params"][part] for part in ("kernel", "bias")}
    target["moments"] = jax.eval_shape(optax.adam(1e-3).init, trained)
    found, metadata = Checkpoints(place_of(HERE, name)).restore(target)
    assert metadata == INDEX[name]["metadata"]
    assert found["plain"] == models.PLAIN
    assert jax.tree.structure(found) == jax.tree.structure(target)
    require_equal(found["moments"], {path.removeprefix("moments/"): x
                                     for path, x in wanted(name).items()
                                     if path.startswith("moments/")})  # fmt: skip
    same(found["params"], state["params"])


def test_an_older_step_is_restored(restored):
    checkpoints = Checkpoints(place_of(HERE, restored[0]))
    assert checkpoints.steps() == [3, 7]
    first, metadata = checkpoints.restore(step=3)
    assert (first["params"].tolist(), metadata) == ([0, 1, 2, 3], {})


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    (name,) = entries("run")
    shutil.copytree(place_of(HERE, name), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(HERE)
    return name, tmp_path / "run"


def error_of(dense: Values) -> float:
    """In percent, by NumPy."""
    leaf = {path: array_of(*bits) for path, bits in dense.items()}
    test = golden_run.blobs().test
    hidden = np.maximum(test.x @ leaf["hidden/kernel"] + leaf["hidden/bias"], 0)
    logits = hidden @ leaf["out/kernel"] + leaf["out/bias"]
    return 100 * float((logits.argmax(1) != test.y).mean())


def measured(summary: Any) -> float:
    return next(one.after for one in summary.measures if one.name == "test error")


def test_a_finished_run_is_known(run_folder):
    name, folder = run_folder
    recipe = recipes.load(folder / "recipe.yaml")
    summary = recipes.run(recipe)
    told = json.loads((folder / "result.json").read_text())
    assert len(summary.rows) == len(told["rows"]) > 0
    assert measured(summary) == pytest.approx(error_of(wanted(name)), abs=1e-4)
    require_equal(shown(nnopt.load(folder / "model.nnopt")), wanted(name))


def test_a_run_ends_from_its_last_checkpoint(run_folder):
    """As if it had been killed before it packed: the same parameters are packed again."""
    name, folder = run_folder
    for file_name in ("model.nnopt", "result.json", "report.html"):
        (folder / file_name).unlink()
    summary = recipes.run(recipes.load(folder / "recipe.yaml"))
    require_equal(shown(nnopt.load(folder / "model.nnopt")), wanted(name))
    assert measured(summary) == pytest.approx(error_of(wanted(name)), abs=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_from_its_midst(run_folder):
    """With masks and moments of then; sums of another machine may end a little elsewhere."""
    name, folder = run_folder
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    for file_name in ("model.nnopt", "result.json", "report.html"):
        (folder / file_name).unlink()
    shutil.rmtree(folder / "checkpoints" / "12")
    recipes.run(recipes.load(folder / "recipe.yaml"))
    again = (folder / "metrics.jsonl").read_text().splitlines()
    assert again[:5] == rows[:5]
    assert [json.loads(row)["step"] for row in again] == [json.loads(row)["step"] for row in rows]
    dense = values_of(shown(nnopt.load(folder / "model.nnopt")))
    for path, (_, bits) in wanted(name).items():
        found = array_of(*dense[path])
        assert found.shape == bits.shape
        assert np.isfinite(found).all()
        if path.endswith("kernel"):  # masks stay, and what they keep is a multiple of few steps
            assert not found[bits == 0].any()
            np.testing.assert_allclose(found, bits, atol=0.3)
