"""What docs/graph.md says is so: its code runs, one block after another."""

from __future__ import annotations

import pathlib
import re

import numpy as np

TEXT = (pathlib.Path(__file__).parents[2] / "docs" / "graph.md").read_text()


def test_the_code_of_the_page_runs(capsys):
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(block, "model.py", "exec"), scope)
    printed = capsys.readouterr().out
    assert "gather combines entries along it at model.py" in printed
    hidden = np.maximum(_rows(scope["params"], scope["batches"]) @ scope["params"]["up"], 0)
    np.testing.assert_allclose(
        scope["seen"]["input_absmax"]["down"], np.abs(hidden).max(), rtol=1e-5
    )
    assert scope["small"].widths == {"down": (6, 4), "embed": (16, 4), "up": (4, 6)}
    assert scope["logits"].shape == (1, 16)


def _rows(params, batches):
    return np.concatenate([np.asarray(params["embed"])[batch].mean(1) for batch in batches])
