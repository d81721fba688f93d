"""Weights in NumPy's archives."""

from __future__ import annotations

import os
import zipfile
import zlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from nnopt_jax.errors import ArtifactError, Problems

_NAME = "read_npz"
# RuntimeError, of which NotImplementedError is one, is what zipfile makes of some flipped bits.
_DAMAGED = (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the arrays of an `.npz` file by name.

    NumPy keeps of `bfloat16` that it has two bytes, no more: such arrays are read as `bfloat16`.
    No pickle is ever read. All arrays are read at once, and their checksums compared.

    Args:
        path: what `numpy.savez` or `numpy.savez_compressed` wrote.

    Returns:
        Arrays by name, in the file's order, ready to be the source of `transfer.graft`.

    Raises:
        ArtifactError: there is no such file, it is damaged, or an array is of Python objects or of
            unknown bytes; all are named.

    Example:
        >>> import tempfile, numpy as np
        >>> from nnopt_jax.interop import read_npz
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/a.npz", **{"dense/kernel": np.ones(2, np.int8)})
        ...     read_npz(f"{folder}/a.npz")
        {'dense/kernel': array([1, 1], dtype=int8)}
    """
    who = f"{_NAME}: {os.fspath(path)}"
    problems, arrays = Problems(who), {}
    try:
        # Opened here, since NumPy leaves a damaged file open.
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ArtifactError(f"{who}: holds one array without a name; numpy.load() it.")
            if any(name.endswith("data.pkl") for name in archive.files):
                raise ArtifactError(f"{who}: is a pickle of PyTorch; write safetensors first.")
            for name in archive.files:
                try:
                    arrays[name] = _typed(archive[name])
                except _DAMAGED as error:
                    problems.add(name, f"cannot be read: {error}")
    except (OSError, *_DAMAGED) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{who}: {getattr(error, 'strerror', None) or error}") from error
    problems.raise_as(ArtifactError)
    return arrays


def _typed(array: Any) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise ValueError("it is not an array; of a pickle of PyTorch, write safetensors first")
    if array.dtype.kind != "V":
        if array.dtype.kind not in "biufc":
            raise ValueError(f"it is of {array.dtype}, no numbers")
        return array
    if array.dtype == np.dtype("V2"):
        return array.view(jnp.bfloat16)
    raise ValueError(
        f"NumPy kept of its dtype only {array.dtype}; write it as float32, or as safetensors"
    )
