"""Whole models in one file: the structure, and the parameters in packed form."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax

from nnopt_jax import artifact
from nnopt_jax.artifact import container
from nnopt_jax.artifact.file import DEFAULT_MAX_BYTES, contents
from nnopt_jax.columns import brief_fields
from nnopt_jax.errors import ArtifactError, ValueRangeError
from nnopt_jax.transfer.structure.structure import Structure
from nnopt_jax.transform.validation import check_values, described
from nnopt_jax.typing import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model that can be run and trained without the code that defined it.

    Args:
        structure: the programs and the tree of parameters.
        params: its parameters, dense or packed.
        metadata: the metadata that it was saved with.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"kernel": jnp.ones((3, 2))}
        >>> structure = nnopt.transfer.capture(
        ...     lambda params, x: x @ params["kernel"], params, jnp.ones((1, 3)), shapes=["b, ..."]
        ... )
        >>> nnopt.transfer.Model(structure, params)(jnp.ones((1, 3)))
        Array([[3., 3.]], dtype=float32)
    """

    structure: Structure
    params: Params
    metadata: Any = None

    __repr__ = brief_fields

    def __call__(self, *args: Any) -> Any:
        """Compute the outputs with a compiled program; see `Structure.apply` for errors."""
        return self._compiled(self.params, *args)

    @functools.cached_property
    def _compiled(self) -> Callable[..., Any]:
        return jax.jit(self.structure.apply)


def save_model(
    path: str | os.PathLike[str], structure: Structure, params: Params, *, metadata: Any = None
) -> None:
    """Write a model to one small file: its structure and its parameters.

    `nnopt.load` reads the parameters alone; `nnopt inspect` describes both.

    Args:
        path: the file, usually with the ending `.nnopt`.
        structure: the result of `capture`.
        params: its parameters, dense or packed.
        metadata: any JSON, to save with the model.

    Raises:
        SelectionError: the paths of the parameters differ from those of the structure.
        ShapeError: their shapes or dtypes differ.
        ArtifactError: the file cannot be written; an older file at `path` is untouched.
        ValueRangeError: the metadata is not JSON, `path` is not a path, or `structure` is not a
            structure.
        CompositionError: parameters are shapes without values.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"kernel": jnp.eye(2)}
        >>> structure = nnopt.transfer.capture(
        ...     lambda params, x: x @ params["kernel"], params, jnp.ones((1, 2)), shapes=["b, ..."]
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nnopt.transfer.save_model(f"{folder}/model.nnopt", structure, params)
        ...     model = nnopt.transfer.load_model(f"{folder}/model.nnopt")
        >>> model(jnp.array([[3.0, 4.0]]))
        Array([[3., 4.]], dtype=float32)
    """
    if not isinstance(structure, Structure):
        raise ValueRangeError(
            f"save_model: structure is {described(structure)}; give what capture() returned, then "
            "the parameters."
        )
    check_values("save_model", structure.check(params, "save_model"))
    artifact.save(path, params, metadata=metadata, program=structure.to_bytes())


def load_model(path: str | os.PathLike[str], *, max_bytes: int = DEFAULT_MAX_BYTES) -> Model:
    """Load a model bit for bit, without model code or pickle.

    Args:
        path: a file that `save_model` wrote.
        max_bytes: the greatest number of bytes that the arrays may take, and that the programs may
            take.

    Returns:
        The model, with its parameters packed as they were, in plain containers.

    Raises:
        ArtifactError: the file does not exist, lacks a structure, is damaged, has an unknown
            version, or is too large.
        ValueRangeError: `path` is not a path, or `max_bytes` is not a whole number.

    Example:
        >>> from nnopt_jax.transfer import load_model
        >>> load_model("nowhere.nnopt")
        Traceback (most recent call last):
        nnopt_jax.errors.ArtifactError: nowhere.nnopt: [Errno 2] No such file ...
    """
    found = contents(path, max_bytes)
    structure = _structure(path, found, max_bytes)
    try:
        structure.check(found.tree, "load_model")
    except (LookupError, ValueError) as error:
        raise ArtifactError(f"{os.fspath(path)}: {error}") from error
    return Model(structure, container.read(found), found.metadata)


def load_structure(
    path: str | os.PathLike[str], *, max_bytes: int = DEFAULT_MAX_BYTES
) -> Structure:
    """Load only the structure of a model, without decoding parameters.

    Args:
        path: a file that `save_model` wrote.
        max_bytes: see `load_model`.

    Returns:
        The structure.

    Raises:
        ArtifactError: see `load_model`.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nnopt.save(f"{folder}/model.nnopt", {"kernel": jnp.eye(2)})
        ...     nnopt.transfer.load_structure(f"{folder}/model.nnopt")
        Traceback (most recent call last):
        nnopt_jax.errors.ArtifactError: ...model.nnopt: holds parameters and no structure. ...
    """
    return _structure(path, contents(path, max_bytes), max_bytes)


def _structure(
    path: str | os.PathLike[str], found: container.Contents, max_bytes: int
) -> Structure:
    if not found.program:
        raise ArtifactError(
            f"{os.fspath(path)}: holds parameters and no structure. nnopt.load reads them; "
            "nnopt.transfer.save_model writes both."
        )
    return Structure.from_bytes(found.program, max_bytes=max_bytes)
