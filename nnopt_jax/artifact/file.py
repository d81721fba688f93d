"""`save` and `load`: one small file for a tree of arrays and expressions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.artifact import container
from nnopt_jax.artifact.whole import replace_file
from nnopt_jax.errors import ArtifactError, ValueRangeError
from nnopt_jax.settings import Settings
from nnopt_jax.tree.paths import flatten

DEFAULT_MAX_BYTES = 1 << 33
"""8 GiB."""
_SLACK = 1 << 20
"""What a file may be larger than its arrays."""


def save(
    path: str | os.PathLike[str], tree: Any, *, metadata: Any = None, program: bytes = b""
) -> None:
    """Writes a tree to one small file.

    Codes, masks and indices are entropy-coded with what their neighbors tell; arrays that occur
    twice are written once. The file appears by a rename: whole, or not at all.

    Args:
        path: where to; `.nnopt` by custom.
        tree: pytree of arrays and expression nodes, as `tx.pack` returns it. Dictionaries, lists,
            tuples and None stay what they are; other containers become dictionaries of their
            fields, and keys become strings.
        metadata: anything JSON can say, to keep beside the tree.
        program: what computes with the tree, as bytes that are kept as they are; see
            `nnopt_jax.transfer.save_model`, which gives them.

    Raises:
        ArtifactError: a leaf is no array of numbers, or the file cannot be written; what was at
            `path` before is untouched.
        ValueRangeError: the metadata is not JSON, `path` no path, or `program` no bytes.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nnopt.save(f"{folder}/model.nnopt", {"w": jnp.arange(3)})
        ...     nnopt.load(f"{folder}/model.nnopt")
        {'w': Array([0, 1, 2], dtype=int32)}
    """
    _require_path("save", path)
    if not isinstance(program, bytes):
        raise ValueRangeError(
            f"save: program is of type {type(program).__name__}, not bytes; "
            "nnopt.transfer.save_model(path, structure, params) writes a model as a whole."
        )
    flatten(tree, is_node)  # tells of keys that JAX cannot sort
    data = container.write(tree, metadata, program)
    try:
        replace_file(path, [data])
    except OSError as error:
        raise ArtifactError(
            f"save: cannot write {len(data)} bytes to {os.fspath(path)}: "
            f"{error.strerror or error}. What was there before is untouched."
        ) from error


def _require_path(who: str, path: Any) -> None:
    if not isinstance(path, str | os.PathLike):
        raise ValueRangeError(
            f"{who}: path is of type {type(path).__name__}; give the name of a file, 'model.nnopt'."
        )


def load(path: str | os.PathLike[str], *, max_bytes: int = DEFAULT_MAX_BYTES) -> Any:
    """Reads a tree, bit for bit, with no model code and no pickle.

    Args:
        path: a file that `save` wrote.
        max_bytes: the most memory the arrays may take, masks spread out; a file that declares
            more is refused before anything is allocated.

    Returns:
        The tree: JAX arrays, or NumPy's of 64 bits where JAX has those turned off, in the nodes
        and containers they were saved in.

    Raises:
        ValueRangeError: `path` is no path, or `max_bytes` no whole number.
        ArtifactError: there is no such file; it is damaged, of an unknown version, or too large.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nnopt.save(f"{folder}/model.nnopt", {"kernel": jnp.eye(2, dtype=jnp.int8)})
        ...     nnopt.load(f"{folder}/model.nnopt", max_bytes=1000)
        {'kernel': Array([[1, 0],
               [0, 1]], dtype=int8)}
    """
    return container.read(contents(path, max_bytes))


def contents(path: str | os.PathLike[str], max_bytes: int) -> container.Contents:
    """What a file holds, with no array decoded yet; raises as `load` does."""
    settings = Settings("load")
    settings.integer("max_bytes", max_bytes, 0)
    settings.done()
    _require_path("load", path)
    try:
        size = os.path.getsize(path)
        if size > max_bytes + _SLACK:
            raise ArtifactError(f"load: a file of {size} bytes, and max_bytes is {max_bytes}.")
        return container.contents(Path(path).read_bytes(), max_bytes)
    except (OSError, ArtifactError) as error:
        raise ArtifactError(f"{os.fspath(path)}: {error}") from error
