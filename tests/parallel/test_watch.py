"""Processes that end alone: the others are told, even where they wait for ever."""

from __future__ import annotations

import signal
import time

import pytest

from tests.parallel.pair import ends, pair

SLEEP = "time.sleep(100)"
BARRIER = """
from jax._src.distributed import global_state
global_state.client.wait_at_barrier("for ever", 100_000)
"""
RAISE = "raise ValueError('boom')"
ENDS = "process {} of 2 ends, as process {} ended by ValueError: boom. What was checkpointed"


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_is_told_to_the_other(failing):
    bodies = [RAISE, SLEEP] if failing == 0 else [SLEEP, RAISE]
    run = ends(pair(*bodies))
    failed, survivor = run[failing], run[1 - failing]
    assert failed[:2] == (1, "")
    assert failed[2].endswith("\nValueError: boom\n")
    assert survivor[:2] == (1, "")
    told = "ProcessLostError: parallel.distributed: " + ENDS.format(1 - failing, failing)
    assert told in survivor[2]


@pytest.mark.slow
def test_one_that_waits_in_a_barrier_for_a_killed_one_ends():
    run = pair(BARRIER, SLEEP, heartbeat=2)
    run[1].send_signal(signal.SIGKILL)
    survivor, killed = ends(run)
    assert killed[0] == -signal.SIGKILL
    assert survivor[0] == 1
    assert "process 0 of 2 ends, as process 1 gave no sign of life for 2 s" in survivor[2]


@pytest.mark.slow
def test_one_that_ignores_interrupts_ends_too():
    ignore = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    failed, survivor = ends(pair(RAISE, ignore + SLEEP))
    assert failed[0] == 1
    assert failed[2].endswith("\nValueError: boom\n")
    assert survivor[0] == 1
    assert ENDS.format(1, 0) in survivor[2]


def test_the_first_waits_for_those_that_still_work():
    start = time.monotonic()
    codes, printed, _ = zip(*ends(pair("pass", "time.sleep(4)")), strict=True)
    assert codes == (0, 0)
    assert printed == ("out\n", "out\n")
    assert time.monotonic() - start >= 4


def test_an_error_that_is_not_of_a_lost_process_stays_what_it_is():
    failed, also = ends(pair(RAISE, RAISE))
    assert failed[2].endswith("\nValueError: boom\n")
    assert also[2].endswith("\nValueError: boom\n")


STEPS = """
import jax.numpy as jnp, os, optax
mesh = parallel.mesh(data=2, fsdp=-1)
params = {"w": jnp.ones((64, 64))}
plan = parallel.specs(params, mesh, least=0)
run = parallel.train_step(lambda p, x: (x @ p["w"]).mean(), optax.adam(1e-3), plan=plan)
state = run.init(params)
for step in range(1000):
    state, _ = run(state, parallel.shard_batch(jnp.ones((16, 64)), mesh))
    if step == 1 and process == 1:
        os._exit(3)
"""


def test_a_dead_collective_does_not_keep_the_survivor():
    survivor, gone = ends(pair(STEPS, STEPS, heartbeat=2))
    assert gone[0] == 3
    assert survivor[0] == 1
    assert "process 0 of 2 ends, as" in survivor[2]
