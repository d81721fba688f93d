"""Two processes that run a few lines each, as one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap

PROGRAM = """
import signal, sys, time
from nnopt_jax import parallel

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in background

port, process, heartbeat = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with parallel.distributed(f"localhost:{port}", processes=2, process=process, heartbeat=heartbeat):
    print("in", flush=True)
    %s
print("out", flush=True)
"""


def pair(*bodies, heartbeat=60):
    """Two processes of two devices, each with its own body; returns once both have met."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    run = []
    for process, body in enumerate(bodies):
        program = PROGRAM % textwrap.indent(textwrap.dedent(body), "    ").strip()
        words = [sys.executable, "-c", program, str(port), str(process), str(heartbeat)]
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        run.append(subprocess.Popen(words, **piped, env=os.environ | flags, text=True))
    for one in run:
        assert one.stdout.readline() == "in\n", one.communicate()
    return run


def ends(run, timeout=120):
    """The exit code of each, what it printed, and what it said of errors."""
    said = [one.communicate(timeout=timeout) for one in run]
    return [(one.returncode, *words) for one, words in zip(run, said, strict=True)]
