"""A user's own project in a folder of its own, and the real command line started in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

MODULE = '''
from types import SimpleNamespace
import jax, numpy as np
from flax import linen, nnx


class Net(nnx.Module):
    def __init__(self, width, classes, rngs):
        self.hidden = nnx.Linear(6, width, rngs=rngs)
        self.out = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x):
        return self.out(jax.nn.relu(self.hidden(x)))


def net(rngs, width=8, classes=3):
    return Net(width, classes, rngs)


def blobs(classes=3, count=240):
    """Three clusters in six dimensions."""
    rng = np.random.default_rng(0)
    y = np.arange(count) % classes
    x = np.float32(rng.normal(size=(count, 6)) * 0.5 + np.eye(6)[y] * 2)
    split = lambda s: SimpleNamespace(x=x[s], y=y[s].astype(np.int32))
    return SimpleNamespace(train=split(slice(0, 160)), valid=split(slice(160, 200)),
                           test=split(slice(200, None)))
'''

RECIPE = """
name: mine
model: mine:net
data: mine:blobs
batch_size: 16
log_every: 5
checkpoint_every: 7
optimizer: {source: optax:adam, learning_rate: 1e-2}
stages:
  - name: train
    epochs: 3
  - name: prune
    epochs: 3
    transforms:
      - pruning.magnitude:
          where: "**/kernel"
          sparsity:
            {source: optax:linear_schedule, init_value: 0, end_value: 0.5, transition_steps: 50%}
  - name: share
    epochs: 3
    transforms:
      - compression.codebook: {clusters: 4, learned: true, where: hidden/kernel}
      - quantization.uniform: {bits: 8}
"""


class Project:
    """A folder with `mine.py` and `recipe.yaml`, and the command `nnopt` in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "mine.py").write_text(dedent(MODULE))
        (folder / "recipe.yaml").write_text(RECIPE)
        self.run = folder / "runs" / "mine"
        # One simulated device: the eight of the tests only slow these tiny networks down. What
        # command lines compile lies apart, for each worker: a warning would be read as theirs.
        worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
        self.env = os.environ | {
            "XLA_FLAGS": "",
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": f"{os.environ['JAX_COMPILATION_CACHE_DIR']}/{worker}",
        }

    def start(self, *args: str, largest: int | None = None) -> subprocess.Popen:
        """Starts `nnopt`; where `largest` is given, no file can grow beyond so many bytes."""
        command = [sys.executable, "-m", "nnopt_jax", *args]
        if largest is not None:
            limited = (
                "import resource, runpy\n"
                f"resource.setrlimit(resource.RLIMIT_FSIZE, ({largest}, {largest}))\n"
                "runpy.run_module('nnopt_jax', run_name='__main__')"
            )
            command = [sys.executable, "-c", limited, *args]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=self.env, **pipes)

    def nnopt(self, *args: str, largest: int | None = None) -> tuple[int, str, str]:
        """Exit status, stdout and stderr of one command."""
        process = self.start(*args, largest=largest)
        out, err = process.communicate(timeout=600)
        return process.returncode, out, err


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose recipe has run to its end, undisturbed."""
    project = Project(tmp_path_factory.mktemp("finished"))
    status, _, err = project.nnopt("run", "recipe.yaml")
    assert status == 0, err
    return project
