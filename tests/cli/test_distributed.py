"""`nnopt run --distributed`: two processes write what one does."""

from __future__ import annotations

import socket

import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.tree import flatten


@pytest.mark.slow
def test_two_processes_run_a_recipe_as_one(project):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--processes", "2"]
    both = [project.start("run", "recipe.yaml", *together, "--process", str(i)) for i in range(2)]
    said = [one.communicate(timeout=300) for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert "test error" in said[0][0]
    assert "test error" not in said[1][0]  # one of them speaks
    status, _, err = project.nnopt("run", "recipe.yaml", "--set", "output=alone")
    assert status == 0, err
    found, wanted = (
        flatten(nnopt.materialize(nnopt.load(folder / "model.nnopt")))
        for folder in (project.run, project.folder / "alone")
    )
    for path, leaf in wanted.items():
        np.testing.assert_allclose(found[path], leaf, atol=0.05, err_msg=path)


def test_half_of_what_processes_need_is_refused(project):
    status, _, err = project.nnopt("run", "recipe.yaml", "--distributed", "--processes", "2")
    assert status == 2
    assert "coordinator=None is not given" in err
