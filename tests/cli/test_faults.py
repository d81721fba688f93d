"""Kills, full disks and damaged checkpoints: a run goes on bit for bit, or says what is wrong."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from nnopt_jax.interop import Checkpoints


def params_of(folder):
    """The parameters of the last checkpoint, and the bytes of the file."""
    with Checkpoints(folder / "checkpoints") as checkpoints:
        tree, _ = checkpoints.restore()
    return jax.tree.leaves(tree), (folder / "model.nnopt").read_bytes()


def metrics_of(folder):
    """The rows of metrics, less the times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "step_ms"} for line in lines]


def require_same(ours, theirs):
    (left, left_file), (right, right_file) = params_of(ours), params_of(theirs)
    assert left_file == right_file
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)
    assert metrics_of(ours) == metrics_of(theirs)


def complete_steps(folder):
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return checkpoints.steps()


def kill_when(project, moment):
    """Starts the run and kills it as soon as `moment()` is true; says whether it was in time."""
    process = project.start("run", "recipe.yaml")
    while process.poll() is None and not moment():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_while_training_saving_and_writing(project, finished):
    def training():
        file = project.run / "metrics.jsonl"
        return file.exists() and len(file.read_bytes().splitlines()) >= 4

    def saving():
        folder = project.run / "checkpoints"
        return folder.exists() and any("tmp" in p.name for p in folder.iterdir())

    def writing():
        return (project.run / "checkpoints" / "90").exists()

    for moment in (training, saving, writing):
        assert kill_when(project, moment)
        stored = complete_steps(project.run)
        kept = stored[-1] if stored else 0
    status, _, err = project.nnopt("run", "recipe.yaml")
    assert status == 0, err
    assert f"continuing after step {kept}\n" in err
    require_same(project.run, finished.run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments(project, finished, seed):
    draw = random.Random(seed)
    for _ in range(6):
        moment = time.monotonic() + draw.uniform(1.0, 12.0)
        kill_when(project, lambda moment=moment: time.monotonic() > moment)
    status, _, err = project.nnopt("run", "recipe.yaml")
    assert status == 0, err
    require_same(project.run, finished.run)


def copy_of(finished, project, *but):
    shutil.copytree(finished.run, project.run, ignore=shutil.ignore_patterns(*but))
    return project.run


@pytest.mark.parametrize("limit", [100, 3000])
def test_a_full_disk_is_told_and_leaves_old_files_whole(finished, project, limit):
    """100 bytes: not even the small file fits; 3,000: the report does not."""
    run = copy_of(finished, project, "result.json")
    old = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}

    status, _, err = project.nnopt("run", "recipe.yaml", largest=limit)
    assert status == 2
    assert "File too large" in err
    assert "Traceback" not in err
    for name, content in old.items():
        assert (run / name).read_bytes() == content
    assert not (run / "result.json").exists()


@pytest.mark.slow
def test_a_full_disk_while_training(project, finished):
    status, _, err = project.nnopt("run", "recipe.yaml", largest=1000)
    assert status == 2
    assert "\nnnopt: Checkpoints.save: step 7: could not be written" in err
    assert "nnopt_jax/" not in err  # no frame of ours; threads of the writer may say their own
    status, _, err = project.nnopt("run", "recipe.yaml")
    assert status == 0, err
    require_same(project.run, finished.run)


def test_a_checkpoint_with_nan_is_refused(finished, project):
    run = copy_of(finished, project, "model.nnopt", "result.json")
    with Checkpoints(run / "checkpoints") as checkpoints:
        last = checkpoints.latest()
        tree, _ = checkpoints.restore(step=last)
        tree["params"]["hidden"]["kernel"] = tree["params"]["hidden"]["kernel"].at[0, 0].set(np.nan)
        checkpoints.delete(last)
        checkpoints.save(last, tree, allow_nonfinite=True)
    status, _, err = project.nnopt("run", "recipe.yaml")
    assert status == 2
    assert "hidden/kernel" in err
    assert "Traceback" not in err


def test_a_flipped_byte_in_a_checkpoint_is_told(finished, project):
    run = copy_of(finished, project, "model.nnopt", "result.json")
    files = [p for p in (run / "checkpoints" / "90").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    status, _, err = project.nnopt("run", "recipe.yaml")
    assert status == 2
    assert "checkpoints" in err
    assert "Traceback" not in err
