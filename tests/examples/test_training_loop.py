"""The example of a training loop, run as a reader would run it, for fewer steps."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

import nnopt_jax as nnopt

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "01_training_loop.py"


@pytest.mark.slow
def test_it_writes_a_file_that_is_smaller(tmp_path):
    file = tmp_path / "model.nnopt"
    command = [sys.executable, str(EXAMPLE), "--steps", "60", "--file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = re.search(r"1,066,440 -> ([\d,]+) bytes", done.stdout)
    assert after is not None, done.stdout
    assert int(after[1].replace(",", "")) == file.stat().st_size < 1_066_440 // 20
    kernel = nnopt.materialize(nnopt.load(file))["fc1"]["kernel"]
    assert (kernel == 0).mean() > 0.9
