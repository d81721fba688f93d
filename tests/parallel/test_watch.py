"""Processes that end alone: the others are told, even where they wait for ever."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

PROGRAM = """
import sys, time
from nnopt_jax import parallel

port, process, heartbeat = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with parallel.distributed(f"localhost:{port}", processes=2, process=process, heartbeat=heartbeat):
    print("in", flush=True)
    %s
print("out", flush=True)
"""


def pair(*bodies, heartbeat=60):
    """Two processes, each with its own body; returns once both have met."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = []
    for process, body in enumerate(bodies):
        program = PROGRAM % textwrap.indent(textwrap.dedent(body), "    ").strip()
        words = [sys.executable, "-c", program, str(port), str(process), str(heartbeat)]
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        run.append(subprocess.Popen(words, **piped, text=True, env=dict(os.environ)))
    for one in run:
        assert one.stdout.readline() == "in\n", one.communicate()
    return run


def ends(run, timeout=120):
    """The exit code of each, the lines it printed, and the last line of its errors."""
    said = [one.communicate(timeout=timeout) for one in run]
    return [
        (one.returncode, out.split(), (err.strip().splitlines() or [""])[-1])
        for one, (out, err) in zip(run, said, strict=True)
    ]


SLEEP = "time.sleep(100)"
BARRIER = """
from jax._src.distributed import global_state
global_state.client.wait_at_barrier("for ever", 100_000)
"""
RAISE = "raise ValueError('boom')"
ENDS = "process {} of 2 ends, as process {} ended by ValueError: boom. What was checkpointed"


def test_an_error_of_one_is_told_to_the_other():
    survivor, failed = ends(pair(SLEEP, RAISE))
    assert failed == (1, [], "ValueError: boom")
    assert survivor[:2] == (1, [])
    assert "ProcessLostError: parallel.distributed: " + ENDS.format(0, 1) in survivor[2]


def test_an_error_of_the_first_is_told_to_the_other():
    failed, survivor = ends(pair(RAISE, SLEEP))
    assert failed == (1, [], "ValueError: boom")
    assert survivor[:2] == (1, [])
    assert "ProcessLostError: parallel.distributed: " + ENDS.format(1, 0) in survivor[2]


def test_one_that_waits_in_a_barrier_for_a_killed_one_ends():
    run = pair(BARRIER, SLEEP, heartbeat=2)
    run[1].send_signal(signal.SIGKILL)
    survivor, killed = ends(run)
    assert killed[0] == -signal.SIGKILL
    assert survivor[0] == 1
    assert "process 0 of 2 ends, as process 1 gave no sign of life for 2 s" in survivor[2]


def test_the_first_waits_for_those_that_still_work():
    start = time.monotonic()
    codes, printed, _ = zip(*ends(pair("pass", "time.sleep(4)")), strict=True)
    assert codes == (0, 0)
    assert printed == (["out"], ["out"])
    assert time.monotonic() - start >= 4


def test_an_error_that_is_not_of_a_lost_process_stays_what_it_is():
    failed, also = ends(pair(RAISE, RAISE))
    assert failed[2] == also[2] == "ValueError: boom"
