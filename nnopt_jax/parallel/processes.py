"""Several operating-system processes as one, by `jax.distributed`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import jax

from nnopt_jax.parallel.watch import Watch
from nnopt_jax.settings import Settings, is_whole


@contextlib.contextmanager
def distributed(
    coordinator: str | None = None,
    *,
    processes: int | None = None,
    process: int | None = None,
    heartbeat: int = 100,
) -> Iterator[None]:
    """Joins this process to the others of a run; to be entered before anything else of JAX.

    Inside, `jax.devices()` are those of all processes, and every process runs the same program on
    its own rows of each batch. Where a process is lost the others end with an error: nothing they
    go on to compute could be right. Start all of them again, from the newest checkpoint.

    Args:
        coordinator: `host:port` of process 0; None where the cluster tells (Slurm, Open MPI,
            Kubernetes, Cloud TPU).
        processes: how many there are.
        process: which this is, from 0.
        heartbeat: seconds without a sign of life after which a process counts as lost.

    Yields:
        None.

    Raises:
        ValueRangeError: some but not all of the first three are given, or one is out of range.
        ProcessLostError: another process did not answer.

    Example:
        >>> import nnopt_jax as nnopt
        >>> with nnopt.parallel.distributed("localhost:9000", processes=2):
        ...     pass
        Traceback (most recent call last):
        nnopt_jax.errors.ValueRangeError: parallel.distributed: process=None is not given; \
coordinator, processes and process belong together.
    """
    _require("parallel.distributed", coordinator, processes, process, heartbeat)
    # Without this the runtime ends the process, before Python can say why.
    jax.config.update("jax_enable_recoverability", True)
    jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=heartbeat)
    try:
        with Watch(heartbeat):
            yield
    finally:
        jax.distributed.shutdown()


def _require(
    who: str, coordinator: str | None, processes: int | None, process: int | None, heartbeat: int
) -> None:
    settings = Settings(who)
    settings.integer("heartbeat", heartbeat, 1)
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    if any(value is not None for value in given.values()):
        for name, value in given.items():
            if value is None:
                settings.wrong(name, value, "is not given; coordinator, processes and process "
                                            "belong together.")  # fmt: skip
    if coordinator is not None and not re.fullmatch(r"\S+:\d+", str(coordinator)):
        settings.wrong("coordinator", coordinator, "is not host:port, such as '10.0.0.1:9000'.")
    settings.integer("processes", processes, 1, none=True)
    top = processes - 1 if is_whole(processes) else None
    settings.integer("process", process, 0, top, none=True)
    settings.done()
