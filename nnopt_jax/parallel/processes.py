"""Several operating-system processes as one run, joined by `jax.distributed` and monitored."""

from __future__ import annotations

import _thread
import atexit
import contextlib
import faulthandler
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import jax

from nnopt_jax.errors import ProcessLostError
from nnopt_jax.settings import Settings, is_whole

PATIENCE = 10.0
"""The seconds that the main thread has to end by itself after another process is lost."""

SILENCE = 3.0
"""The seconds of silence after which an ending process no longer waits for another one."""

_SIGNS, _VERDICT = "nnopt_jax/signs/", "nnopt_jax/verdict/"
_LEFT, _ENDED, _BEREFT = "left", "ended by", "ended by the loss of another one"

_UNANSWERED = re.compile(
    r"gloo|nccl|heartbeat|coordination service|connection (reset|closed)", re.I
)
"""A pattern of errors that the runtime raises when another process does not answer."""


@contextlib.contextmanager
def distributed(
    coordinator: str | None = None,
    *,
    processes: int | None = None,
    process: int | None = None,
    heartbeat: int = 100,
) -> Iterator[None]:
    """Join this process to the others of a run, before any other use of JAX.

    Inside, `jax.devices()` lists the devices of all processes, and every process runs the same
    program on its own rows of each batch. If a process is lost, the others end with an error,
    because they cannot compute correct results. Start all of them again, from the newest
    checkpoint.

    Args:
        coordinator: `host:port` of process 0; None if the cluster provides it (Slurm, Open MPI,
            Kubernetes, Cloud TPU).
        processes: the number of processes.
        process: the number of this process, from 0.
        heartbeat: the number of seconds without a heartbeat after which a process counts as lost.

    Yields:
        None.

    Raises:
        ValueRangeError: some but not all of the first three arguments are set, or one is out of
            range.
        ProcessLostError: another process did not answer.

    Example:
        >>> import nnopt_jax as nnopt
        >>> with nnopt.parallel.distributed("localhost:9000", processes=2):
        ...     pass
        Traceback (most recent call last):
        nnopt_jax.errors.ValueRangeError: parallel.distributed: process=None is not given; \
coordinator, processes and process belong together.
    """
    settings = Settings("parallel.distributed")
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
    # Without this, the runtime ends the process before Python can say why.
    jax.config.update("jax_enable_recoverability", True)
    jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=heartbeat)
    try:
        with Watch(heartbeat):
            yield
    finally:
        jax.distributed.shutdown()


class Watch:
    """A thread that ends this process if another one is lost.

    Collectives and the barriers of checkpoints may wait forever, and meanwhile only this thread
    runs Python. Each process writes heartbeats to the store of the coordinator; process 0 reads all
    of them, and announces a missing one. The main thread is then interrupted, as by Ctrl-C; if it
    does not end within `PATIENCE` seconds, the process is ended.

    Args:
        heartbeat: the number of seconds without a heartbeat after which a process counts as lost.

    Raises:
        ProcessLostError: at the end, if another process was lost.
    """

    def __init__(self, heartbeat: float) -> None:
        # The store has no public name; orbax takes it from the same place.
        from jax._src.distributed import global_state

        self._store: Any = global_state.client
        self._process, self._count = global_state.process_id, global_state.num_processes
        self._heartbeat = heartbeat
        self._verdict: str | None = None
        self._signed = 0
        self._seen: dict[int, tuple[str, float]] = {}
        self._stop, self._interrupting = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True, name="nnopt watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with self._interrupting:
                self._stop.set()
        except KeyboardInterrupt:  # its own heartbeat, which came late
            self._stop.set()
        self._thread.join()
        bereft = self._verdict is not None or _is_unanswered(error)
        try:
            self._announce_end(error, bereft)
        except jax.errors.JaxRuntimeError:
            self._verdict = self._verdict or "process 0, which holds the coordinator, is gone"
        if error is not None or self._verdict is not None:
            atexit.register(_end_in_time)
        if bereft or (error is None and self._verdict is not None):
            raise ProcessLostError(self._message()) from error

    def _run(self) -> None:
        """Write heartbeats and check those of other processes, until one is lost."""
        try:
            while not self._wait():
                self._find_losses()
                if self._verdict is not None:
                    self._end()
        except jax.errors.JaxRuntimeError:  # without a coordinator, the runtime ends the process
            return

    def _wait(self) -> bool:
        """Write a heartbeat and wait; return whether the main thread has ended."""
        self._signed += 1
        self._sign(str(self._signed))
        return self._stop.wait(min(1.0, self._heartbeat / 5))

    def _end(self) -> None:
        """Interrupt the main thread, and end the process if that does not help."""
        with self._interrupting:
            if not self._stop.is_set():
                _interrupt()
        patience = time.monotonic() + PATIENCE
        while not self._wait():
            if time.monotonic() > patience:
                logging.getLogger(__name__).critical(self._message())
                os._exit(1)

    def _announce_end(self, error: BaseException | None, bereft: bool) -> None:
        """Announce the end of this process; process 0, which runs the store, ends last."""
        sign = _LEFT if error is None else _BEREFT if bereft else f"{_ENDED} {_first_line(error)}"
        self._sign(sign)
        if self._process != 0:
            return self._find_losses()
        if error is not None and not bereft:
            self._announce_loss(f"process 0 {sign}")
        while self._is_awaited(self._heartbeat if error is None else SILENCE):
            self._find_losses()
            time.sleep(0.05)
        self._find_losses()
        # The runtime kills processes that shut down after the coordinator; this returns when all
        # have.
        parting = [other for other, (sign, _) in self._signs().items() if _has_ended(sign)]
        self._store.get_live_nodes([0, *parting])
        return None

    def _sign(self, sign: str) -> None:
        self._store.key_value_set(f"{_SIGNS}{self._process}", sign, allow_overwrite=True)

    def _announce_loss(self, verdict: str) -> None:
        self._verdict = verdict
        self._store.key_value_set(f"{_VERDICT}0", verdict, allow_overwrite=True)

    def _find_losses(self) -> None:
        """Read the announcement of a lost process; process 0 checks heartbeats and writes it."""
        if self._verdict is not None:
            return
        if self._process != 0:
            self._verdict = next((verdict for _, verdict in self._read(_VERDICT)), None)
        else:
            # A process that ended by itself explains more than those that lost it.
            losses = sorted(self._losses(), key=lambda one: one.endswith(_BEREFT))
            if losses:
                self._announce_loss(losses[0])

    def _losses(self) -> Iterator[str]:
        """Yield a sentence about each other process that was lost."""
        for process, (sign, silence) in self._signs().items():
            if sign.startswith(_ENDED):
                yield f"process {process} {sign}"
            elif sign != _LEFT and silence > self._heartbeat:
                yield f"process {process} gave no sign of life for {self._heartbeat:g} s"

    def _is_awaited(self, silence: float) -> bool:
        """Return whether any other process still sends heartbeats and has not ended."""
        return any(
            silent <= silence and not _has_ended(sign) for sign, silent in self._signs().values()
        )

    def _signs(self) -> dict[int, tuple[str, float]]:
        """Return the last heartbeat of each other process, and the seconds since it changed."""
        now, said = time.monotonic(), dict(self._read(_SIGNS))
        for process in range(1, self._count):
            sign = said.get(f"{_SIGNS}{process}", "")
            last, since = self._seen.get(process, ("", now))
            self._seen[process] = (sign, since if sign == last else now)
        return {process: (sign, now - since) for process, (sign, since) in self._seen.items()}

    def _read(self, folder: str) -> list[tuple[str, str]]:
        return self._store.key_value_dir_get(folder)

    def _message(self) -> str:
        return (
            f"parallel.distributed: process {self._process} of {self._count} ends, as "
            f"{self._verdict or 'it got no answer from another one'}. What was checkpointed is "
            "whole: start all processes again to go on from there."
        )


def _interrupt() -> None:
    """Interrupt the main thread as by Ctrl-C, even if it sleeps."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()


def _end_in_time() -> None:
    """End the process after `PATIENCE` seconds, even if runtime threads still wait.

    Python does not run any more by then, so the timer must not need Python.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    faulthandler.dump_traceback_later(PATIENCE, exit=True, file=nowhere)


def _has_ended(sign: str) -> bool:
    return sign.startswith((_LEFT, _ENDED))


def _is_unanswered(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, says that a peer did not answer."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) and _UNANSWERED.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
