"""Checkpoints of training states by orbax: complete steps only, verified bit for bit."""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
import os
import pathlib
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any, Self

import jax
import numpy as np

from nnopt_jax.errors import CheckpointError, NnoptError, Problems, ValueRangeError
from nnopt_jax.interop.snapshot import Wanted, freeze, match_target, thaw

FORMAT = 1
"""The version of the layout of a step, raised at every change."""


class Checkpoints:
    """The checkpoints of one training run, in one directory.

    A step is one orbax step: the arrays under numbers, so that keys cannot collide, and a manifest
    with the structure, node types, static fields, dtypes, shapes and a checksum of every leaf,
    which is the same on every mesh. A step is renamed into place, so that it is complete or absent.
    The first `save` removes leftovers of killed runs; reading changes nothing.

    Args:
        directory: the directory of the steps; the first `save` creates it.
        keep: the number of the newest steps to keep.

    Raises:
        ValueRangeError: `keep` is less than 1.

    Example:
        >>> import tempfile
        >>> import jax, jax.numpy as jnp
        >>> from nnopt_jax.interop import Checkpoints
        >>> state = {"w": jnp.ones(3), "key": jax.random.key(0), "epoch": 2}
        >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        ...     checkpoints.save(10, state, metadata={"loss": 0.5})
        ...     restored, metadata = checkpoints.restore(state)
        ...     print(checkpoints.steps(), restored["w"], metadata)
        [10] [1. 1. 1.] {'loss': 0.5}
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueRangeError(f"Checkpoints: keep is {keep}; keep at least 1 step.")
        self.directory = pathlib.Path(directory).absolute()
        self.keep = keep
        self._writer: Any = None

    def save(
        self,
        step: int,
        tree: Any,
        *,
        metadata: Mapping[str, Any] | None = None,
        allow_nonfinite: bool = False,
    ) -> None:
        """Write one step to disk, then delete the oldest steps beyond `keep`.

        Args:
            step: the number of the step, greater than all stored ones.
            tree: any pytree of arrays (JAX, sharded or not, or NumPy), nodes, typed PRNG keys,
                numbers, strings and None.
            metadata: any JSON; `restore` returns it.
            allow_nonfinite: whether NaN and infinity are allowed.

        Raises:
            NonFiniteError: a leaf holds NaN, or an array holds infinity.
            CheckpointError: two leaves share a path, a leaf cannot be stored, the step is not the
                newest, or writing failed. Older steps stay intact in any case.
        """
        step = operator.index(step)
        who = f"Checkpoints.save: step {step}"
        latest = self.latest()
        if step < 0 or (latest is not None and step <= latest):
            raise CheckpointError(
                f"{who}: {self.directory} holds step {latest}, and steps only grow. Continue "
                f"from restore(), or delete({latest}) first."
            )
        arrays, manifest = freeze(tree, who, finite=not allow_nonfinite)
        header = {"format": FORMAT, "library": version("nnopt-jax"), "step": step}
        manifest = header | {"metadata": dict(metadata or {})} | manifest
        try:
            manifest = {"digest": _digest(manifest)} | manifest
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{who}: metadata is not JSON ({error}).") from error
        with one_error(f"{who}: could not be written to {self.directory}"):
            self._write(step, arrays, manifest)

    def restore(self, target: Any = None, *, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Read a step, and verify every leaf by its checksum.

        Args:
            target: a tree of arrays or `jax.ShapeDtypeStruct` to restore into. Containers, node
                types, static fields, dtypes and shapes must equal the stored ones; shardings may be
                any. None rebuilds the tree from the manifest: nodes, dictionaries, lists and tuples
                as they were, any other container as the dictionary of its fields, and arrays
                unsharded on the default device.
            step: the number of the step; by default the newest.

        Returns:
            The tree, and the metadata it was saved with.

        Raises:
            CheckpointError: the step does not exist, does not fit the target (all differences are
                listed), or is damaged (all damaged leaves are listed).
        """
        steps = self.steps()
        if not steps or step not in (None, *steps):
            which = "a step" if step is None else f"step {step}"
            raise CheckpointError(
                f"Checkpoints.restore: {self.directory} does not hold {which}. Stored: {steps}."
            )
        step = steps[-1] if step is None else step
        who = f"Checkpoints.restore: step {step} of {steps} in {self.directory}"
        manifest = self._read_manifest(step, who)
        numbered, leaves = match_target(manifest, target, who)
        arrays = self._read_arrays(step, leaves, who)
        return thaw(numbered, leaves, arrays, who), manifest["metadata"]

    def steps(self) -> list[int]:
        """Return the complete steps on disk, oldest first."""
        if not self.directory.is_dir():
            return []
        names = [path.name for path in self.directory.iterdir() if path.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def latest(self) -> int | None:
        """Return the newest complete step, or None in an empty folder."""
        return max(self.steps(), default=None)

    def delete(self, step: int) -> None:
        """Remove one step, for example to continue from an older one.

        Raises:
            CheckpointError: the step does not exist.
        """
        if step not in self.steps():
            raise CheckpointError(f"Checkpoints.delete: {self.directory} holds no step {step}.")
        with one_error(f"Checkpoints.delete: step {step} could not be removed"):
            self._open().delete(step)

    def close(self) -> None:
        """Release the resources of writing; the object can still be used."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Any:
        """Return the orbax manager for writing; the first call removes leftovers of killed runs."""
        if self._writer is None:
            import orbax.checkpoint as ocp
            from orbax.checkpoint.checkpoint_managers import LatestN

            options = ocp.CheckpointManagerOptions(
                preservation_policy=LatestN(self.keep),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
            )
            self._writer = ocp.CheckpointManager(self.directory, options=options)
        return self._writer

    def _read(self, step: int, who: str, name: str, how: Any) -> Any:
        """Read one item of a step: its arrays or its manifest."""
        import orbax.checkpoint as ocp

        where = self.directory / str(step)
        with (
            one_error(f"{who}: {name} of {where} damaged or incomplete"),
            ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader,
        ):
            return reader.restore(where, args=ocp.args.Composite(**{name: how}))[name]

    def _write(self, step: int, arrays: dict[str, Any], manifest: dict[str, Any]) -> None:
        import orbax.checkpoint as ocp

        items: dict[str, Any] = {"manifest": ocp.args.JsonSave(manifest)}
        if arrays:  # orbax does not accept an empty tree
            items["arrays"] = ocp.args.PyTreeSave(arrays)
        try:
            # Without `force`, a policy may skip a step silently.
            self._open().save(step, args=ocp.args.Composite(**items), force=True)
        except BaseException:
            with contextlib.suppress(Exception):  # a manager that failed half-way is not used again
                self.close()
            raise

    def _read_manifest(self, step: int, who: str) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        manifest = self._read(step, who, "manifest", ocp.args.JsonRestore())
        if not isinstance(manifest, dict) or manifest.pop("digest", "") != _digest(manifest):
            raise CheckpointError(f"{who}: the manifest is damaged.")
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{who}: has format {manifest['format']}, this library reads {FORMAT}. "
                f"Read it with nnopt-jax {manifest['library']}, which wrote it."
            )
        return manifest

    def _read_arrays(self, step: int, leaves: list[Wanted], who: str) -> Mapping[str, Any]:
        import orbax.checkpoint as ocp

        def read(how: dict[str, Any]) -> Mapping[str, Any]:
            args = ocp.args.PyTreeRestore(how, restore_args=how, partial_restore=True)
            return self._read(step, who, "arrays", args)

        every = {str(at): _restore_args(leaf) for at, leaf in enumerate(leaves) if leaf.leaf.stored}
        try:
            return read(every) if every else {}
        except CheckpointError:
            problems = Problems(who)
            # One array at a time, because orbax stops at the first damaged one and knows only
            # numbers.
            for number, how in every.items():
                try:
                    read({number: how})
                except CheckpointError as error:
                    problems.add(leaves[int(number)].path, f"is damaged: {error.__cause__}")
            problems.raise_as(CheckpointError)
            raise


def _restore_args(leaf: Wanted) -> Any:
    """Return the orbax arguments to read one array, sharded if the target is."""
    import orbax.checkpoint as ocp

    # The words of keys have one axis more than the keys that the sharding is for.
    if leaf.sharding is None or leaf.leaf.dtype.startswith("key<"):
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=leaf.sharding)


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


@contextlib.contextmanager
def one_error(message: str, kind: type[NnoptError] = CheckpointError) -> Iterator[None]:
    """Convert any error of the `with` block to one of a given type with a given message."""
    try:
        yield
    except Exception as error:
        reason = str(error).splitlines()[:1] or [""]
        raise kind(f"{message}: {type(error).__name__}: {reason[0]}") from error
