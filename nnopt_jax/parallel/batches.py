"""Data parallelism: splitting, padding and feeding batches over the devices of a mesh."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nnopt_jax.errors import ShapeError
from nnopt_jax.parallel.meshes import batch_spec, check_mesh, constrain, shard_count
from nnopt_jax.settings import Settings
from nnopt_jax.tree.paths import flatten
from nnopt_jax.typing import Array

UNEVEN = ("error", "pad", "drop")


def process_rows(size: int, mesh: Mesh, *, axes: Sequence[str] | None = None) -> np.ndarray:
    """Return the rows of a global batch that this process must read.

    Args:
        size: the number of rows of the batch, over all processes.
        mesh: the devices.
        axes: the mesh axes that split the batch; by default `data` and `fsdp`, as far as the mesh
            has them.

    Returns:
        The row numbers, int, ascending: all rows that devices of this process hold. If processes
        hold only shards of the model, several of them read the same rows.

    Raises:
        ShapeError: the rows do not divide.

    Example:
        >>> import nnopt_jax as nnopt
        >>> len(nnopt.parallel.process_rows(16, nnopt.parallel.mesh(data=8)))
        16
    """
    who = "parallel.process_rows"
    sharding, ways = _batch_sharding(mesh, axes, who)
    settings = Settings(who)
    settings.integer("size", size, 1)
    settings.done()
    check_divisible(who, np.empty((size, 0)), ways, "")
    spans = sharding.addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[span] for span in spans if span]))


def shard_batch(batch: Any, mesh: Mesh, *, axes: Sequence[str] | None = None) -> Any:
    """Split a batch along its first axis over the devices of a mesh.

    Args:
        batch: a pytree of arrays `(rows, ...)`; with several processes, the rows of `process_rows`.
        mesh: the devices.
        axes: the mesh axes that split the batch; by default `data` and `fsdp`, as far as the mesh
            has them.

    Returns:
        The tree of arrays over the whole mesh.

    Raises:
        ShapeError: the rows are not divisible, or the arrays differ in their numbers of rows.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> batch = {"x": jnp.ones((16, 3)), "y": jnp.zeros(16)}
        >>> split = nnopt.parallel.shard_batch(batch, nnopt.parallel.mesh(data=8))
        >>> split["x"].addressable_shards[0].data.shape
        (2, 3)
    """
    who = "parallel.shard_batch"
    sharding, ways = _batch_sharding(mesh, axes, who)
    # The shards of this process; other processes hold the rest.
    here = len(set(map(str, sharding.addressable_devices_indices_map((ways,)).values())))
    check_divisible(who, batch, here, ", or fill it up by parallel.pad_batch")
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def pad_batch(batch: Any, size: int) -> tuple[Any, np.ndarray]:
    """Pad a batch by repeating its last row.

    Args:
        batch: a pytree of arrays `(rows, ...)`, of NumPy or JAX.
        size: the number of rows after padding.

    Returns:
        The batch of `size` rows, and float32 weights `(size,)`: 1 for its own rows, 0 for repeated
        ones. A loss `parallel.Weighted((weight * losses).sum(), weight.sum())` is the
        mean over its own rows.

    Raises:
        ShapeError: the batch is empty or has more rows, or its arrays differ in their numbers of
            rows.

    Example:
        >>> import numpy as np
        >>> import nnopt_jax as nnopt
        >>> nnopt.parallel.pad_batch(np.array([5, 6, 7]), 4)
        (array([5, 6, 7, 7]), array([1., 1., 1., 0.], dtype=float32))
    """
    rows = rows_of("parallel.pad_batch", batch)
    if not 0 < rows <= size:
        raise ShapeError(f"parallel.pad_batch: {rows} rows cannot be filled up to {size}.")
    take = np.minimum(np.arange(size), rows - 1)
    weight = (np.arange(size) < rows).astype(np.float32)
    return (batch if rows == size else jax.tree.map(lambda x: x[take], batch)), weight


def feed(
    batches: Iterable[Any],
    mesh: Mesh,
    *,
    uneven: str = "error",
    prefetch: int = 2,
    axes: Sequence[str] | None = None,
) -> Iterator[Any]:
    """Transfer batches to the devices ahead of their use.

    Args:
        batches: pytrees of arrays `(rows, ...)`; with several processes, each passes the rows of
            `process_rows`, and all pass the same number of batches.
        mesh: the devices.
        uneven: the treatment of a batch with fewer rows than the first: `"error"` raises an error;
            `"pad"` pads it, and every item is then the pair that `pad_batch` returns; `"drop"`
            drops it.
        prefetch: the number of batches that are transferred ahead.
        axes: the mesh axes that split the batch; by default `data` and `fsdp`, as far as the mesh
            has them.

    Returns:
        An iterator over the batches, split along their first axis. It raises ShapeError for a batch
        that is not divisible, has more rows than the first or, with `"error"`, fewer.

    Raises:
        ValueRangeError: a setting is out of range.

    Example:
        >>> import numpy as np
        >>> import nnopt_jax as nnopt
        >>> batches = [np.ones((8, 2)), np.ones((3, 2))]
        >>> mesh = nnopt.parallel.mesh(data=8)
        >>> [float(w.sum()) for _, w in nnopt.parallel.feed(batches, mesh, uneven="pad")]
        [8.0, 3.0]
    """
    settings = Settings("parallel.feed")
    settings.choice("uneven", uneven, UNEVEN)
    settings.integer("prefetch", prefetch, 1)
    settings.done()
    _batch_sharding(mesh, axes, "parallel.feed")
    even = _equal_batches(batches, uneven)

    # A separate generator, so that wrong settings raise here and not at the first batch.
    def ahead() -> Iterator[Any]:
        waiting = collections.deque(
            shard_batch(batch, mesh, axes=axes) for batch in itertools.islice(even, prefetch)
        )
        while waiting:
            yield waiting.popleft()
            waiting.extend(shard_batch(b, mesh, axes=axes) for b in itertools.islice(even, 1))

    return ahead()


def _equal_batches(batches: Iterable[Any], uneven: str) -> Iterator[Any]:
    """Yield batches of equal size; pad, drop or reject one smaller than the first."""
    who, size = "parallel.feed", None
    for number, batch in enumerate(batches, 1):
        rows = rows_of(who, batch)
        size = rows if size is None else size
        if rows > size or (rows < size and uneven == "error"):
            raise ShapeError(
                f"{who}: batch {number} has {rows} rows, the first has {size}; give "
                "uneven='pad' or 'drop' for a last one of fewer."
            )
        if uneven == "pad":
            yield pad_batch(batch, size)
        elif rows == size:
            yield batch


def check_divisible(who: str, batch: Any, ways: int, advice: str) -> None:
    """Raise if the rows of a batch cannot be divided into equal shards."""
    rows = rows_of(who, batch)
    if rows % ways or not rows:
        raise ShapeError(
            f"{who}: {rows} rows do not divide into {ways} shares; take a batch of "
            f"{rows - rows % ways or ways} or {rows - rows % ways + ways}{advice}."
        )


def _batch_sharding(mesh: Mesh, axes: Sequence[str] | None, who: str) -> tuple[NamedSharding, int]:
    """Return the sharding of a batch, and the number of its shards."""
    check_mesh(who, mesh)
    spec = batch_spec(mesh, axes, who)
    return NamedSharding(mesh, spec), shard_count(mesh, spec)


def micro_batches(batch: Any, count: int, mesh: Mesh, rows: PartitionSpec) -> Any:
    """Split a batch into micro-batches under `jax.jit`, each of rows from every device.

    Args:
        batch: a pytree of arrays `(rows, ...)`.
        count: the number of parts.
        mesh: the devices.
        rows: the spec of the rows.

    Returns:
        The tree of arrays `(count, rows / count, ...)`.
    """

    def cut(x: Array) -> Array:
        # Part i takes every count-th row, so that each device keeps its own rows and none
        # is moved.
        return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)

    return constrain(jax.tree.map(cut, batch), mesh, PartitionSpec(None, *rows))


def rows_of(who: str, batch: Any) -> int:
    """Return the number of rows of a batch; raise if its arrays differ."""
    known = {np.shape(x)[:1] for x in jax.tree.leaves(batch)}  # paths are slow to find
    if len(known) == 1 and (only := known.pop()):
        return only[0]
    rows = {path: np.shape(x)[:1] for path, x in flatten(batch).items()}
    counts = ", ".join(f"{path or 'it'} has {n[0] if n else 'no axis'}" for path, n in rows.items())
    raise ShapeError(
        f"{who}: the arrays of a batch need one number of rows; {counts or 'none is'}."
    )
