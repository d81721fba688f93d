"""What several processes are to save as one must be the same in each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from nnopt_jax.errors import CheckpointError, Problems


def require_agreement(entries: Sequence[dict[str, Any]], who: str) -> None:
    """Wants every process to hold the same leaves with the same values.

    Args:
        entries: what the manifest says of each leaf, its value or checksum included.
        who: the function that asks, for errors.

    Raises:
        CheckpointError: in every process, where they differ; all such leaves are listed.

    Example:
        >>> from nnopt_jax.interop.agreement import require_agreement
        >>> require_agreement([{"path": "w", "checksum": [1, 2]}], "demo")  # one process
    """
    if jax.process_count() == 1:
        return
    if _same(_words(entries, len(entries))):
        return
    if not _same(np.array([len(entries)], np.uint32)):
        raise CheckpointError(
            f"{who}: process {jax.process_index()} holds {len(entries)} leaves, another one other "
            "leaves. Give each process the same tree."
        )
    of_each = _gathered(np.stack([_words(entry) for entry in entries]))
    problems = Problems(who)
    for entry, words in zip(entries, of_each.swapaxes(0, 1), strict=True):
        others = np.flatnonzero((words != words[0]).any(1))
        if others.size:
            where = ", ".join(map(str, others))
            problems.add(entry["path"], f"is another value in process {where} than in process 0. "
                                        "Make it the same, or shard it over the mesh")  # fmt: skip
    problems.raise_as(CheckpointError)


def _words(*values: Any) -> np.ndarray:
    """A hash as two integers, which JAX passes on without 64 bits."""
    told = json.dumps(values).encode()
    return np.frombuffer(hashlib.sha256(told).digest()[:8], np.uint32)


def _gathered(x: np.ndarray) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(x))


def _same(x: np.ndarray) -> bool:
    of_each = _gathered(x)
    return bool((of_each == of_each[0]).all())
