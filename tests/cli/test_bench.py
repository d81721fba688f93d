"""`nnopt bench`: what a finished network takes for a call."""

from __future__ import annotations

import re
import sys

import jax.numpy as jnp
import pytest

import nnopt_jax as nnopt
from nnopt_jax.cli import main


@pytest.fixture
def there(finished, monkeypatch):
    monkeypatch.chdir(finished.folder)
    monkeypatch.setattr(sys, "path", [str(finished.folder), *sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return finished


def rows(text):
    """By size of the batch the milliseconds and the ratio of each row."""
    found = re.findall(r"batch of (\d+) +(.*) as fast", text)
    return {int(size): [float(cell) for cell in re.findall(r"[\d.e-]+", cells)]
            for size, cells in found}  # fmt: skip


@pytest.mark.slow
def test_a_run_is_timed_for_every_batch(there, capsys):
    assert main(["bench", "runs/mine", "--batch", "1", "300", "--rounds", "7"]) == 0
    said = capsys.readouterr().out
    found = rows(said)
    assert list(found) == [1, 300]  # there are 40 test inputs
    for dense, dense_least, packed, packed_least, ratio in found.values():
        assert 0 < dense_least <= dense
        assert 0 < packed_least <= packed
        assert ratio > 0
    assert "Sparse (its form has no packed product)" in said
    assert "Prepacked (nnopt.prepack, dense=True)" in said
    assert re.search(r"by batch: 1: \S+ ms, \S+x as fast", said)
    assert main(["bench", "runs/mine/model.nnopt", "--batch", "1", "--rounds", "1"]) == 0


def test_a_program_is_timed_without_its_code(tmp_path, capsys):
    tx, params = nnopt.quantization.uniform(8), {"table": jnp.ones((5, 4)), "w": jnp.ones((4, 3))}

    def apply(params, tokens, scale):
        return params["table"][tokens].mean(1) @ params["w"] * scale

    def written(name, *args, shapes):
        structure = nnopt.transfer.capture(apply, params, *args, shapes=shapes)
        path = tmp_path / f"{name}.nnopt"
        nnopt.transfer.save_model(path, structure, tx.pack(params, tx.init(params)))
        return str(path)

    tokens, scale = jnp.zeros((1, 6), jnp.int32), jnp.ones((1, 3))
    free = written("free", tokens, scale, shapes=["b, ...", "b, ..."])
    assert main(["bench", free, "--batch", "2", "3", "--rounds", "2"]) == 0
    said = capsys.readouterr().out
    assert list(rows(said)) == [2, 3]
    assert "2 of 2 packed leaves are materialized inside the call" in said
    fixed = written("fixed", tokens, scale, shapes=None)
    assert main(["bench", fixed, "--batch", "1", "--rounds", "1"]) == 0
    capsys.readouterr()
    assert main(["bench", fixed, "--batch", "4"]) == 2
    assert "no batch of 4 can be made" in capsys.readouterr().err
    longer = written("longer", tokens, scale, shapes=["b, t", "b, ..."])
    assert main(["bench", longer, "--batch", "4"]) == 2
    assert "input 0: is int32[b,t] to the program" in capsys.readouterr().err


def test_what_nothing_can_be_timed_of_is_told(tmp_path, capsys):
    path = tmp_path / "alone.nnopt"
    nnopt.save(path, {"w": jnp.ones(3)})
    for where in (str(path), str(tmp_path), str(tmp_path / "nowhere")):
        assert main(["bench", where]) == 2
        assert f"bench: {where} is neither a finished run" in capsys.readouterr().err
    assert main(["bench", str(path), "--batch", "0", "--rounds", "0"]) == 2
    said = capsys.readouterr().err
    assert "batch=0 is not a whole number" in said
    assert "rounds=0 is not a whole number" in said
