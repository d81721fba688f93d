"""Several processes: equal to one, and nothing lost when some are killed."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnopt_jax import parallel
from nnopt_jax.errors import ValueRangeError
from nnopt_jax.interop import Checkpoints
from nnopt_jax.tree import flatten
from tests.parallel import worker

ROOT = pathlib.Path(__file__).parents[2]


def start(folder, axes, processes, devices, **job):
    """Starts the processes of a run, each with some devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    settings = {"folder": str(folder), "axes": axes, "processes": processes} | job
    if processes > 1:
        settings["coordinator"] = f"127.0.0.1:{port}"
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.parallel.worker", json.dumps(settings | {"process": i})],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]


def finish(run, timeout=500):
    """Waits for all; returns their exit codes and what they said of errors."""
    try:
        said = [one.communicate(timeout=timeout)[1] for one in run]
    except subprocess.TimeoutExpired:
        for one in run:
            one.kill()
            one.communicate()
        raise
    return [one.returncode for one in run], said


def log(folder, process=0):
    path = pathlib.Path(f"{folder}.log{process}")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(run, folder, test, timeout=240):
    """Until the log of process 0 has such a line; that none ends before is part of the test."""
    end = time.monotonic() + timeout
    while not any(test(line) for line in log(folder)):
        assert all(one.poll() is None for one in run), finish(run)
        assert time.monotonic() < end, log(folder)
        time.sleep(0.02)


def restored(folder, axes, step=None):
    """The state of a step, on a mesh of this process."""
    count = int(np.prod(list(axes.values())))
    run, _ = worker.build(axes, jax.devices()[:count])
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(worker.saved(run), step=step)[0]


def assert_equal(a, b):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for path, x in a.items():
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, b[path] = map(jax.random.key_data, (x, b[path]))
        np.testing.assert_array_equal(x, b[path], err_msg=path)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes of two devices that trained three steps; process 0 is ready to end first."""
    folder = tmp_path_factory.mktemp("two") / "run"
    axes = {"fsdp": 2, "model": 2}
    codes, said = finish(start(folder, axes, 2, 2, steps=3, every=3, linger=2.0))
    assert codes == [0, 0], said
    return folder


def test_two_processes_train_as_one(two, tmp_path):
    job = worker.Job(str(tmp_path / "one"), {"fsdp": 2, "model": 2}, 3, every=3)
    _, losses = worker.train(job, devices=jax.devices()[:4])
    found = {line["step"]: line["loss"] for line in log(two) if "step" in line}
    for step, value in losses.items():
        np.testing.assert_allclose(found[step], value, rtol=1e-6)


@pytest.mark.parametrize("axes", [{"fsdp": 4, "model": 1}, {"fsdp": 2, "model": 4}], ids=str)
def test_what_they_saved_is_the_same_on_any_mesh(two, axes):
    assert_equal(restored(two, axes), restored(two, {"data": 1}))


@pytest.mark.slow
def test_one_process_goes_on_where_two_were(two, tmp_path):
    job = worker.Job(str(tmp_path / "one"), {"fsdp": 2, "model": 2}, 5, every=5)
    _, losses = worker.train(job, devices=jax.devices()[:4])
    copied = tmp_path / "two"
    copied.mkdir()
    subprocess.run(["cp", "-r", f"{two}/3", str(copied)], check=True)
    job = worker.Job(str(copied), {"fsdp": 4}, 5, every=5)
    _, more = worker.train(job, devices=jax.devices()[:4])
    assert sorted(more) == [3, 4]
    for step, value in more.items():
        np.testing.assert_allclose(value, losses[step], rtol=1e-5)


@pytest.mark.slow
def test_a_survivor_ends_with_a_clear_message(tmp_path):
    folder = tmp_path / "run"
    run = start(folder, {"fsdp": 2, "model": 2}, 2, 2, steps=10_000, every=2, pause=0.3)
    wait_for(run, folder, lambda line: line.get("step", 0) >= 6)  # no save follows this step
    run[1].send_signal(signal.SIGKILL)
    codes, said = finish(run)
    assert codes == [3, -signal.SIGKILL]
    assert "process 0 of 2 ends, as it got no answer from another one" in said[0]
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() >= 4
        checkpoints.restore()


VICTIMS = {"first": slice(0, 1), "last": slice(-1, None), "all": slice(None)}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("victims", VICTIMS)
def test_a_kill_during_a_save_loses_nothing(tmp_path, processes, victims):
    axes = {"fsdp": processes, "model": 2}
    whole = tmp_path / "whole"
    codes, said = finish(start(whole, axes, processes, 2, steps=8))
    assert set(codes) == {0}, said
    folder = tmp_path / "killed"
    for round_, delay in enumerate((0.0, 0.1, 0.3)):
        run = start(folder, axes, processes, 2, steps=8, pause=0.1)
        wait_for(run, folder, lambda line, n=round_: line.get("saving", 0) > 1 + 2 * n)
        time.sleep(delay)
        killed = run[VICTIMS[victims]]
        for one in killed:
            one.send_signal(signal.SIGKILL)
        codes, said = finish(run)
        for one, code, words in zip(run, codes, said, strict=True):
            assert_ended(code, words, killed=one in killed, orphaned=victims == "first")
        with Checkpoints(folder) as checkpoints:
            checkpoints.restore()  # every bit is checked
    codes, said = finish(start(folder, axes, processes, 2, steps=8))
    assert set(codes) == {0}, said
    assert_equal(restored(folder, {"data": 1}), restored(whole, {"data": 1}))


def assert_ended(code, words, killed, orphaned):
    """A survivor says that another one was lost; of process 0 JAX says it, and aborts."""
    if killed:
        assert code == -signal.SIGKILL
    elif orphaned:
        assert code in (3, -signal.SIGABRT), words
        assert re.search("another task died|parallel.distributed: process", words), words
    else:
        assert code == 3, words
        assert "parallel.distributed: process" in words


@pytest.mark.slow
def test_four_processes_train_as_one(tmp_path):
    folder, axes = tmp_path / "run", {"data": 2, "fsdp": 2, "model": 2}
    codes, said = finish(start(folder, axes, 4, 2, steps=3, every=3))
    assert set(codes) == {0}, said
    job = worker.Job(str(tmp_path / "one"), axes, 3, every=3)
    _, losses = worker.train(job)
    found = {line["step"]: line["loss"] for line in log(folder) if "step" in line}
    for step, value in losses.items():
        np.testing.assert_allclose(found[step], value, rtol=1e-6)
    codes, said = finish(start(folder, {"fsdp": 4}, 2, 2, steps=5, every=5))
    assert set(codes) == {0}, said


def test_settings_that_do_not_belong_together():
    with pytest.raises(ValueRangeError, match="processes=None is not given"):
        parallel.distributed("localhost:9000", process=0).__enter__()
    with pytest.raises(ValueRangeError, match=r"'localhost' is not host:port(.|\n)*process=2"):
        parallel.distributed("localhost", processes=2, process=2).__enter__()
