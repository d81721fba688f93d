"""Adapter files: the arrays that an adapter adds to a base model, without the base."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.node_description import abstract, check, describe
from nnopt_jax.arrays.nodes import is_node, summary
from nnopt_jax.artifact import container, save
from nnopt_jax.artifact.description import plain
from nnopt_jax.artifact.file import DEFAULT_MAX_BYTES, contents
from nnopt_jax.errors import (
    ArtifactError,
    Problems,
    SelectionError,
    ValueRangeError,
    nearest,
)
from nnopt_jax.ops.checksums import digest
from nnopt_jax.transform.validation import check_values
from nnopt_jax.tree.paths import flatten
from nnopt_jax.typing import Params

_SAVE, _LOAD = "transfer.save_adapter", "transfer.load_adapter"
_KIND, _VERSION = "nnopt adapter", 1


def save_adapter(path: str | os.PathLike[str], packed: Params, base: Params) -> None:
    """Save the arrays of an adapted model that its base lacks, and checksums of the base.

    Arrays that equal an array of the same leaf of the base, bit for bit, are omitted: `lora` and
    `dora` write factors and magnitudes, and leaves that were trained further write their new
    values. The checksums are the same on every mesh.

    Args:
        path: the file, usually with the ending `.nnopt`. It is renamed into place, so that it is
            complete or absent.
        packed: the result of `tx.pack(base, state)`.
        base: the arrays or packed parameters that were passed to `tx`.

    Raises:
        SelectionError: the trees have different paths; all are named.
        ValueRangeError: the packed tree contains nothing of the base, or nothing else.
        CompositionError: leaves are not arrays, or shapes without values; all are named.
        ArtifactError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> from nnopt_jax.transfer import load_adapter, lora, save_adapter
        >>> base, tx = {"kernel": jnp.ones((64, 64))}, lora(rank=2)
        >>> packed = tx.pack(base, tx.init(base, key=jax.random.key(0)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_adapter(f"{folder}/a.nnopt", packed, base)
        ...     load_adapter(f"{folder}/a.nnopt", base)
        {'kernel': Sum(base float32[64,64], delta Factored(u float32[64,2], v float32[2,64]), \
34 bits/weight)}
    """
    # In plain containers, as a file is loaded: names and the order of leaves are those of the file.
    packed = plain(packed)
    ours, theirs = _leaves(_SAVE, packed), _leaves(_SAVE, base)
    problems = Problems(_SAVE)
    for name in sorted(ours.keys() ^ theirs.keys()):
        there, other = ("packed tree", theirs) if name in ours else ("base", ours)
        problems.add(name, f"is in the {there} alone.{nearest(name, other)}")
    problems.raise_as(SelectionError)
    kept, taken, known = [], {}, {}
    for name, leaf in ours.items():
        parts = _BaseLeaf.of(theirs[name])
        places = [parts.find(x) for x in jax.tree.leaves(leaf)]
        kept += [x for x, at in zip(jax.tree.leaves(leaf), places, strict=True) if at is None]
        if any(at is not None for at in places):
            known[name] = parts.description
        taken[name] = places
    if not known:
        raise ValueRangeError(
            f"{_SAVE}: no leaf of the packed tree builds on the base; give the tree that `tx` was "
            "given. A whole model is for nnopt.save()."
        )
    if not kept:
        raise ValueRangeError(
            f"{_SAVE}: the packed tree holds nothing that the base lacks; give first what "
            "tx.pack(base, state) returned, then the base."
        )
    facts = {"kind": f"{_KIND} {_VERSION}", "tree": describe(packed), "taken": taken, "base": known}
    save(path, kept, metadata=facts)


def load_adapter(
    path: str | os.PathLike[str], base: Params, *, max_bytes: int = DEFAULT_MAX_BYTES
) -> Params:
    """Load an adapter file, and apply the adapter to its base model.

    Args:
        path: a file that `save_adapter` wrote.
        base: the base that it was saved for, on any mesh and in any containers; its arrays are used
            unchanged.
        max_bytes: see `nnopt.load`.

    Returns:
        The packed tree that was saved, bit for bit, in plain containers.

    Raises:
        ArtifactError: leaves of the base differ from those of the adapter, or are superfluous (all
            are named); or the file is damaged, too large, or of another kind or version.
        CompositionError: leaves of the base are not arrays; all are named.

    Example:
        >>> import tempfile
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> base, tx = {"kernel": jnp.ones((8, 8))}, nnopt.transfer.lora(rank=2)
        >>> packed = tx.pack(base, tx.init(base, key=jax.random.key(0)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nnopt.transfer.save_adapter(f"{folder}/a.nnopt", packed, base)
        ...     nnopt.transfer.load_adapter(f"{folder}/a.nnopt", {"kernel": jnp.zeros((8, 8))})
        Traceback (most recent call last):
        nnopt_jax.errors.ArtifactError: ...: kernel: holds other values than the base of the adapter
    """
    found = contents(path, max_bytes)
    who = f"{_LOAD}: {os.fspath(path)}"
    facts, theirs = _description(found.metadata, who), _leaves(_LOAD, base)
    try:
        known, taken, tree = (dict(facts[name]) for name in ("base", "taken", "tree"))
        parts = _base_leaves(known, taken, theirs, who)
        arrays = iter(container.read(found))
        values = [
            next(arrays) if at is None else parts[name].arrays[at]
            for name, places in taken.items()
            for at in places
        ]
        made = _build_tree(tree, values)
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{who}: malformed ({error!r}).") from error
    check(made, who)
    return made


def _leaves(who: str, tree: Params) -> dict[str, Any]:
    """Return the leaves by path; raise if some are not arrays."""
    leaves = flatten(tree, is_node)
    check_values(who, leaves)
    return leaves


def _description(metadata: Any, who: str) -> dict[str, Any]:
    """Return the description of the adapter; raise if this version cannot read it."""
    kind = metadata.get("kind") if isinstance(metadata, dict) else None
    if kind == f"{_KIND} {_VERSION}":
        return metadata
    name, _, version = kind.rpartition(" ") if isinstance(kind, str) else ("", "", "")
    if name != _KIND:
        raise ArtifactError(f"{who}: is not an adapter; nnopt.load() reads it.")
    raise ArtifactError(
        f"{who}: the adapter has version {version}, this library reads {_VERSION}. "
        "Read it with the version of nnopt_jax that wrote it."
    )


class _BaseLeaf(NamedTuple):
    """The arrays of one leaf of the base, with their checksums."""

    arrays: list[Any]
    sums: list[list[int]]
    description: list[str]

    @staticmethod
    def of(leaf: Any) -> _BaseLeaf:
        arrays = jax.tree.leaves(leaf)
        sums = [_digest(x) for x in arrays]
        text = json.dumps([describe(leaf), sums])
        return _BaseLeaf(
            arrays, sums, [summary(leaf), hashlib.sha256(text.encode()).hexdigest()[:16]]
        )

    def find(self, x: Any) -> int | None:
        """Return the index of the array that equals another one bit for bit, or None."""
        alike = [i for i, y in enumerate(self.arrays) if (x.shape, x.dtype) == (y.shape, y.dtype)]
        # A checksum reads all bytes, so it is computed only if no array is the very same
        # object.
        mine = _digest(x) if alike and not any(x is self.arrays[i] for i in alike) else None
        return next((i for i in alike if x is self.arrays[i] or self.sums[i] == mine), None)


def _digest(x: Any) -> list[int]:
    """Return the checksum of an array; for PRNG keys, the checksum of their words."""
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return digest(jax.random.key_data(x) if is_key else x)


def _base_leaves(
    known: Mapping[str, Any], taken: Mapping[str, Any], base: Mapping[str, Any], who: str
) -> dict[str, _BaseLeaf]:
    """Return the leaves of the base that an adapter refers to; raise if the base differs."""
    problems, parts = Problems(who), {}
    for name, (outline, total) in known.items():
        if name not in base:
            problems.add(name, f"is not in this base.{nearest(name, base)}")
            continue
        parts[name] = _BaseLeaf.of(base[name])
        ours, checksum = parts[name].description
        if checksum == total:
            continue  # the summary may differ, because classes may have been renamed since
        if ours != outline:
            problems.add(name, f"is {ours}, the base of the adapter has {outline}")
        else:
            problems.add(name, "holds other values than the base of the adapter")
    problems.raise_as(ArtifactError)
    for name in sorted(base.keys() - taken.keys()):
        problems.add(name, f"is in this base, not in that of the adapter.{nearest(name, taken)}")
    problems.raise_as(ArtifactError)
    return parts


def _build_tree(tree: Any, values: list[Any]) -> Any:
    """Build the described tree from arrays; raise if an array differs from its description."""
    rest = iter(values)

    def fill(dtype: str, shape: tuple[int, ...]) -> Any:
        value = next(rest)
        if (str(value.dtype), tuple(value.shape)) != (dtype, shape):
            raise ValueError(f"{value.dtype}{value.shape} in place of {dtype}{shape}")
        return value

    made = abstract(tree, fill)
    if next(rest, None) is not None:
        raise ValueError("more arrays than the tree has")
    return made
