"""How each golden entry is written: files, expected values, and what the index says of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import export

import nnopt_jax as nnopt
from nnopt_jax import recipe as recipes
from nnopt_jax.arrays import Node
from nnopt_jax.interop import Checkpoints, write_safetensors
from nnopt_jax.transfer import save_adapter, save_model
from nnopt_jax.transfer.structure.program import no_source_paths
from tests.golden import coded, codes, composed, masks, models
from tests.golden.values import array_bytes, outline, write_values

Maker = Callable[[Path], dict[str, Any]]
"""Writes files whose names begin with a path, and returns what the index is to say."""

RUN = {
    "name": "golden", "model": "golden_run:network", "data": "golden_run:blobs",
    "loss": "golden_run:loss", "metric": "golden_run:error", "batch_size": 32,
    "log_every": 2, "checkpoint_every": 4, "seed": 0,
    "optimizer": {"source": "optax:adam", "learning_rate": 0.05},
    "stages": [
        {"name": "train", "epochs": 2},
        {"name": "small", "epochs": 2, "transforms": [
            {"pruning.magnitude": {"sparsity": 0.5, "where": "**/kernel"}},
            {"quantization.uniform": {"bits": 4, "where": "**/kernel"}}]},
    ],
}  # fmt: skip


def _with(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def nodes_of(tree: Any) -> set[type[Node]]:
    """The classes of all nodes of a tree, those within others too."""
    leaves = jax.tree.leaves(tree, is_leaf=nnopt.arrays.is_node)
    found = [leaf for leaf in leaves if isinstance(leaf, Node)]
    inner = (nodes_of([field for _, field in leaf.fields()]) for leaf in found)
    return set(map(type, found)).union(*inner)


def _names(tree: Any) -> list[str]:
    return sorted(cls.file_name() for cls in nodes_of(tree))


def _told(kind: str, tree: Any, **more: Any) -> dict[str, Any]:
    """What the index says of a tree."""
    return {"kind": kind, "nodes": _names(tree), "bytes": array_bytes(tree), **more}


def tree_maker(make: Callable[[], Any]) -> Maker:
    """One tree in one file, with metadata."""

    def write(path: Path) -> dict[str, Any]:
        tree = make()
        holds = (make.__doc__ or f"Nodes of the kind {make.__name__}.").splitlines()[0]
        write_values(_with(path, ".npz"), nnopt.materialize(tree))
        metadata = {"holds": holds, "numbers": [1, 0.5, -3], "nothing": None}
        if make is coded.containers:
            named = {"layers": [layer._asdict() for layer in tree["layers"]]}
            metadata["outline"] = outline(tree | named | {"by_number": {"3": 0}})
        nnopt.save(_with(path, ".nnopt"), tree, metadata=metadata)
        return _told("tree", tree, holds=holds, metadata=metadata)

    return write


def model_maker(make: Callable[[], Any], platforms: list[str] | None) -> Maker:
    """Parameters and the program that computes with them."""

    def write(path: Path) -> dict[str, Any]:
        params, batch = make(), models.inputs(3, 5)
        shown = nnopt.materialize(params)
        write_values(_with(path, ".npz"), shown)
        outputs = models.apply(shown, *map(jnp.asarray, batch))
        write_values(_with(path, ".calls.npz"), {"inputs": list(batch), "outputs": outputs})
        metadata = {"epoch": 3}
        made = models.structure(shown, platforms=platforms)
        save_model(_with(path, ".nnopt"), made, params, metadata=metadata)
        holds = "A model: parameters and the program that computes with them."
        return _told("model", params, holds=holds, metadata=metadata)

    return write


def write_structure(path: Path) -> dict[str, Any]:
    """A structure without weights: two programs, initializers and a constructor."""
    params, batch = models.dense(), models.inputs(3, 5)
    outputs = models.apply(params, *map(jnp.asarray, batch))
    calls = {"params": params, "inputs": list(batch), "outputs": outputs}
    write_values(_with(path, ".calls.npz"), calls)
    with _with(path, ".bin").open("xb") as file:
        file.write(models.whole_structure().to_bytes())
    shapes = {path: [str(x.dtype), list(x.shape)] for path, x in nnopt.tree.flatten(params).items()}
    holds = (write_structure.__doc__ or "").strip()
    return {"kind": "structure", "holds": holds, "nodes": [], "shapes": shapes}


def write_exported(path: Path) -> dict[str, Any]:
    """A program of `jax.export` whose arguments are packed, of each node, and those arguments."""
    params, x = models.exportable(), np.eye(16, dtype=np.float32)[:4]
    shown = nnopt.materialize(params)
    write_values(_with(path, ".npz"), shown)
    nnopt.save(_with(path, ".nnopt"), params)

    def function(params: Any, x: Any) -> Any:
        return models.product(params, x, nnopt.materialize)

    with no_source_paths():
        program = export.export(jax.jit(function), platforms=["cpu"])(params, x).serialize()
    with _with(path, ".bin").open("xb") as file:
        file.write(program)
    holds = (write_exported.__doc__ or "").strip()
    return _told("exported", params, holds=holds)


def adapter_maker(name: str) -> Maker:
    """A base, and what was learned over it, in files of their own."""

    def write(path: Path) -> dict[str, Any]:
        base, learned = models.adapters()[name]
        write_values(_with(path, ".npz"), nnopt.materialize(learned))
        nnopt.save(_with(path, ".base.nnopt"), base)
        save_adapter(_with(path, ".nnopt"), learned, base)
        holds = (adapter_maker.__doc__ or "").strip()
        return _told("adapter", learned, holds=holds)

    return write


def _weights() -> dict[str, Any]:
    rng = np.random.default_rng(60)
    wanted = (
        "float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "uint16", "int32",
        "uint32", "int64", "uint64", "bool", "float8_e4m3fn", "float8_e5m2",
    )  # fmt: skip
    tree: dict[str, Any] = {
        name: (rng.integers(0, 2, (3, 5)) * 3).astype(getattr(ml_dtypes, name, name))
        for name in wanted
    }
    return tree | {"layers": [{"kernel": jnp.eye(3)}, {"kernel": jnp.ones((2, 2), jnp.bfloat16)}],
                   "empty": np.zeros((0, 3), np.float32), "scalar": np.float32(0.1)}  # fmt: skip


def write_tensors(path: Path) -> dict[str, Any]:
    """A file of safetensors, names joined by points."""
    metadata = {"format": "jax", "epoch": "3"}
    named = _dotted(_weights())
    write_values(_with(path, ".npz"), named)
    write_safetensors(_with(path, ".safetensors"), _weights(), separator=".", metadata=metadata)
    return {"kind": "safetensors", "holds": (write_tensors.__doc__ or "").strip(), "nodes": [],
            "metadata": metadata}  # fmt: skip


def write_archive(path: Path) -> dict[str, Any]:
    """An archive of NumPy, as the library reads them: of bfloat16 NumPy keeps two bytes."""
    named = {name: x for name, x in _dotted(_weights()).items() if "float8" not in name}
    write_values(_with(path, ".npz"), named)
    with _with(path, ".weights.npz").open("xb") as file:
        np.savez_compressed(file, **{name: np.asarray(x) for name, x in named.items()})
    return {"kind": "npz", "holds": (write_archive.__doc__ or "").strip(), "nodes": []}


def _dotted(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def write_checkpoint(path: Path) -> dict[str, Any]:
    """Two steps of training state: leaves in training and packed, moments, keys, Python's own."""
    state = models.training_state()
    write_values(_with(path, ".npz"), nnopt.materialize(state))
    metadata = {"loss": [0.5, None], "epoch": 2}
    with Checkpoints(path) as checkpoints:
        checkpoints.save(3, {"params": jnp.arange(4.0)})
        checkpoints.save(7, state | {"plain": models.PLAIN}, metadata=metadata)
    holds = (write_checkpoint.__doc__ or "").strip()
    return _told("checkpoint", state, holds=holds, metadata=metadata)


def write_run(path: Path) -> dict[str, Any]:
    """The folder of a finished run of a recipe, with a checkpoint from its midst."""
    with chdir(path.parent):
        summary = recipes.run(recipes.build(RUN | {"output": path.name}))
    assert summary is not None
    params = nnopt.load(path / "model.nnopt")
    write_values(_with(path, ".npz"), nnopt.materialize(params))
    return _told("run", params, holds=(write_run.__doc__ or "").strip())


FORMAT_3 = (
    codes.bits, codes.levels, codes.trits, masks.supports, masks.gathered, composed.nested,
    composed.sums, composed.normalized, coded.containers, coded.dtypes, coded.apart, coded.pools,
    coded.tables, coded.large,
)  # fmt: skip
"""Trees that are written in format 3 as well: every container, form of node and note."""

MAKERS: dict[str, Maker] = {
    f"{module.__name__.rpartition('.')[2]}/{make.__name__}": tree_maker(make)
    for module in (codes, masks, composed, coded)
    for make in module.TREES
} | {
    "models/dense": model_maker(models.dense, None),
    "models/packed": model_maker(models.packed, ["cpu"]),
    "models/structure": write_structure,
    "models/exported": write_exported,
    **{f"adapters/{name}": adapter_maker(name) for name in ("over_arrays", "over_packed")},
    "weights/tensors": write_tensors,
    "weights/archive": write_archive,
    "training/checkpoint": write_checkpoint,
    "training/run": write_run,
    **{f"format3/{make.__name__}": tree_maker(make) for make in FORMAT_3},
    "format3/model": model_maker(models.packed, ["cpu"]),
    "format3/adapter": adapter_maker("over_packed"),
}


def place_of(folder: Path, name: str) -> Path:
    """What the paths of all files of an entry begin with."""
    return folder / "files" / name


def files_of(folder: Path, name: str) -> list[Path]:
    """The files of an entry, those of a folder of its own included."""
    place = place_of(folder, name)
    beside = [path for path in place.parent.glob(f"{place.name}.*") if path.is_file()]
    within = [path for path in place.rglob("*") if path.is_file()]
    return sorted(beside + within)


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a folder; empty where there is none."""
    file = folder / "index.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Writes the index, sorted."""
    text = json.dumps(dict(sorted(index.items())), indent=1, ensure_ascii=False)
    beside = folder / ".index.json"
    beside.write_text(text + "\n", encoding="utf-8")
    os.replace(beside, folder / "index.json")
