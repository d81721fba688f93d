"""Weights in folders of orbax, written by any program on any number of devices."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.errors import ArtifactError, CheckpointError
from nnopt_jax.interop.orbax import Checkpoints
from nnopt_jax.tree.paths import flatten

_NAME = "read_orbax"
_TREE, _OURS = "_METADATA", ("manifest", "arrays")


def read_orbax(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the leaves of an orbax step by path, whole, without a target.

    Args:
        path: a folder that orbax wrote: one step, or one item of a step. A step of
            `Checkpoints` gives its expressions back, packed as they were.

    Returns:
        Leaves by path, ready to be the source of `transfer.graft`. Where a step has several items,
        their names come first: `params/dense/kernel`.

    Raises:
        ArtifactError: there is no such folder, or it is damaged.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from nnopt_jax.interop import Checkpoints, read_orbax
        >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        ...     checkpoints.save(3, {"dense": {"kernel": jnp.ones(2)}})
        ...     read_orbax(f"{folder}/3")
        {'dense/kernel': Array([1., 1.], dtype=float32)}
    """
    place = Path(path).absolute()
    who = f"{_NAME}: {place}"
    if (place / _OURS[0]).is_dir() and place.name.isdecimal():
        try:
            tree, _ = Checkpoints(place.parent).restore(step=int(place.name))
        except CheckpointError as error:
            raise ArtifactError(f"{who}: {error}") from error
        return flatten(tree, is_node)
    items = {place.name: place} if (place / _TREE).is_file() else _items(place)
    if not items:
        raise ArtifactError(f"{who}: {_what(place)}")
    trees = {name: flatten(_restored(item, who)) for name, item in items.items()}
    if len(trees) == 1:
        return next(iter(trees.values()))
    return {f"{name}/{path}": x for name, tree in trees.items() for path, x in tree.items()}


def _items(place: Path) -> dict[str, Path]:
    """Return the trees of a step."""
    return {found.parent.name: found.parent for found in sorted(place.glob(f"*/{_TREE}"))}


def _what(place: Path) -> str:
    """Describe a folder that is not a step."""
    if not place.is_dir():
        return "there is no such folder."
    steps = sorted(int(one.name) for one in place.iterdir() if one.name.isdecimal())
    if steps:
        return f"holds the steps {steps}; give one of them, {place / str(steps[-1])}."
    return f"is not an orbax step: no {_TREE} in it or in its folders."


def _restored(place: Path, who: str) -> Any:
    import orbax.checkpoint as ocp

    how = ocp.RestoreArgs(restore_type=np.ndarray)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            held = reader.metadata(place).item_metadata
            tree = getattr(held, "tree", held)
            args = jax.tree.map(lambda x: how, tree)
            return reader.restore(place, args=ocp.args.PyTreeRestore(restore_args=args))
    except Exception as error:
        reason = str(error).splitlines()[:1] or [""]
        raise ArtifactError(
            f"{who}: damaged or incomplete: {type(error).__name__}: {reason[0]}"
        ) from error
