"""A model of 5.8 billion weights fits on 16 devices of TPU v5e, by the real compiler."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
ASK = "import gathers, json; print(json.dumps([step.temporaries for step in gathers.on_tpu()]))"


@pytest.mark.slow
def test_the_temporaries_of_a_large_model_fit():
    pytest.importorskip("libtpu", reason="pip install 'nnopt-jax[tpu-aot]'")
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=ROOT / "benchmarks",
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    everything, adapters = json.loads(done.stdout.splitlines()[-1])
    assert everything < 7e9
    assert adapters < 4.5e9
