"""Weights in the safetensors format: one file, or a folder of shards with an index."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.artifact.file import replace_file
from nnopt_jax.errors import ArtifactError, Problems, SelectionError, ValueRangeError
from nnopt_jax.interop import safetensors_header as header
from nnopt_jax.tree.paths import flatten
from nnopt_jax.typing import PyTree

INDEX = ".safetensors.index.json"
_READ, _WRITE = "read_safetensors", "write_safetensors"


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read tensors by name, each from disk when it is first used.

    Arrays are read-only views of the mapped file. Do not modify the file while they are in use;
    replacing it by a rename, as `write_safetensors` does, is safe.

    Args:
        path: a `.safetensors` file, an index of shards (`*.safetensors.index.json`), or a folder
            with one of these.

    Returns:
        Arrays by name, in the file's order, ready to be the source of `transfer.graft`; `bfloat16`
        and the floats of 8 bits are those of `ml_dtypes`.

    Raises:
        ArtifactError: the file does not exist, is damaged or truncated, or a shard or a tensor of
            the index is missing. The error names the file and the tensors.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from nnopt_jax.interop import read_safetensors, write_safetensors
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_safetensors(f"{folder}/a.safetensors", {"w": jnp.ones(2)})
        ...     read_safetensors(f"{folder}/a.safetensors")
        {'w': array([1., 1.], dtype=float32)}

    References: https://github.com/huggingface/safetensors (format).
    """
    place = _file_to_read(Path(path))
    return _indexed_tensors(place) if place.name.endswith(INDEX) else _tensors(place)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata strings of one file.

    Args:
        path: a `.safetensors` file.

    Returns:
        The strings by name.

    Raises:
        ArtifactError: see `read_safetensors`.

    Example:
        >>> import tempfile
        >>> from nnopt_jax.interop import read_metadata, write_safetensors
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_safetensors(f"{folder}/a", {"w": 1.0}, metadata={"format": "jax"})
        ...     read_metadata(f"{folder}/a")
        {'format': 'jax'}
    """
    return _map_file(Path(path))[2]


def write_safetensors(
    path: str | os.PathLike[str],
    tree: PyTree,
    *,
    separator: str = "/",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the arrays of a tree under their paths.

    The file is renamed into place, so that it is complete or absent. Packed leaves raise an error,
    because the format cannot represent them, and dense arrays would take many times their bytes.

    Args:
        path: the file, usually with the ending `.safetensors`.
        tree: any pytree of arrays.
        separator: the string that joins the keys of a path; `"."` as in PyTorch.
        metadata: strings to save with the arrays.

    Raises:
        ArtifactError: a leaf is packed, is not an array, or is of a dtype that the format lacks;
            all are named; or the file cannot be written.
        SelectionError: two paths become the same name.
        ValueRangeError: the metadata is not strings.

    Example:
        >>> import tempfile, numpy as np
        >>> from nnopt_jax.interop import read_safetensors, write_safetensors
        >>> tree = {"dense": {"kernel": np.eye(2, dtype=np.int8)}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_safetensors(f"{folder}/a.safetensors", tree, separator=".")
        ...     list(read_safetensors(f"{folder}/a.safetensors"))
        ['dense.kernel']
    """
    metadata = dict(metadata or {})
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise ValueRangeError(
            f"{_WRITE}: metadata={metadata!r} holds more than strings; json.dumps them."
        )
    arrays = _named(tree, separator)
    # The widest dtype first, so that each array is aligned to its own width.
    order = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
    head = header.compose({name: arrays[name] for name in order}, metadata)
    chunks = (_octets(arrays[name]) for name in order)
    try:
        replace_file(path, (chunk for part in ([head], chunks) for chunk in part))
    except OSError as error:
        raise ArtifactError(
            f"{_WRITE}: cannot write {os.fspath(path)}: {error.strerror or error}. What was there "
            "before is untouched."
        ) from error


def _named(tree: PyTree, separator: str) -> dict[str, Any]:
    problems, arrays = Problems(_WRITE), {}
    twice = Problems(_WRITE)
    for path, leaf in flatten(tree, is_node).items():
        name = path.replace("/", separator)
        if is_node(leaf):
            problems.add(
                path, f"is packed, {leaf!r}; give nnopt.materialize(tree), or nnopt.save() it"
            )
        elif isinstance(leaf, bool | int | float | complex):
            leaf = np.asarray(leaf, jax.dtypes.canonicalize_dtype(type(leaf)))
        elif isinstance(leaf, np.ndarray | np.generic):
            leaf = np.asarray(leaf, leaf.dtype.newbyteorder("="))
        elif not hasattr(leaf, "dtype") or not hasattr(leaf, "nbytes"):
            problems.add(path, f"is a {type(leaf).__name__}, not an array; leave it out")
        if name in arrays or name == "__metadata__":
            twice.add(path, f"would be the tensor {name!r} once more; choose another separator")
        arrays[name] = leaf
    problems.raise_as(ArtifactError)
    twice.raise_as(SelectionError)
    return arrays


def _octets(array: Any) -> memoryview:
    """Return the bytes of an array in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _file_to_read(path: Path) -> Path:
    """Return the path itself, or that of the only file to read in a folder."""
    if not path.is_dir():
        return path
    for pattern in (f"*{INDEX}", "*.safetensors"):
        found = sorted(path.glob(pattern))
        named = [one for one in found if one.name == pattern.replace("*", "model")] or found
        if len(named) == 1:
            return named[0]
        if found:
            names = ", ".join(one.name for one in found)
            raise ArtifactError(f"{_READ}: {path} holds {names}; give the path of one.")
    raise ArtifactError(f"{_READ}: {path} holds no *.safetensors file.")


def _indexed_tensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors that an index lists, in its order."""
    who = f"{_READ}: {path}"
    try:
        where = json.loads(path.read_bytes())["weight_map"]
        shards = sorted(set(where.values()))
        if not all(isinstance(shard, str) for shard in shards):
            raise TypeError("shards are named by strings")
    except OSError as error:
        raise ArtifactError(f"{who}: {error.strerror or error}.") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{who}: is not an index of shards ({error!r}).") from error
    problems, held = Problems(who), {}
    for shard in shards:
        mine = [name for name in where if where[name] == shard]
        some = f"{', '.join(mine[:3])}{', ...' if len(mine) > 3 else ''}"
        if Path(shard).name != shard:
            problems.add(some, f"lie in {shard!r}, which is not a file beside the index")
        elif not (path.parent / shard).is_file():
            problems.add(some, f"lie in {shard}, which is missing; fetch it")
        else:
            held[shard] = _tensors(path.parent / shard)
    for name, shard in where.items():
        if shard in held and name not in held[shard]:
            problems.add(name, f"is not in {shard}, where the index has it")
    problems.raise_as(ArtifactError)
    return {name: held[shard][name] for name, shard in where.items()}


def _tensors(path: Path) -> dict[str, np.ndarray]:
    data, entries, _ = _map_file(path)
    return {name: _view(data, entry) for name, entry in entries.items()}


def _view(data: np.ndarray, entry: header.TensorEntry) -> np.ndarray:
    octets = data[entry.begin : entry.begin + entry.nbytes]
    if octets.ctypes.data % entry.dtype.alignment:  # a file of another writer, which is not aligned
        octets = octets.copy()
    return octets.view(entry.dtype).reshape(entry.shape)


def _map_file(path: Path) -> tuple[np.ndarray, dict[str, header.TensorEntry], dict[str, str]]:
    """Return the mapped bytes after the header, the tensors and the metadata."""
    who = f"{_READ}: {path}"
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, header.MOST_BYTES):
                raise ArtifactError(
                    f"{who}: a file of {size} bytes cannot have a header of {length}; it is "
                    "not a safetensors file, or was cut short."
                )
            entries, metadata = header.parse(file.read(length), size - 8 - length, who)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ArtifactError(f"{who}: {error.strerror or error}.") from error
    return np.frombuffer(mapped, np.uint8, offset=8 + length), entries, metadata
