"""Every example runs from its first line to its last, for two steps, and prints a figure."""

from __future__ import annotations

import inspect
import pathlib
import re
import runpy

import pytest

EXAMPLES = sorted((pathlib.Path(__file__).parents[2] / "examples").glob("*.py"))


QUICK = ("02",)
"""All others compile convolutions, or several whole training steps."""
RUNS = [
    pytest.param(path, marks=() if path.name.startswith(QUICK) else pytest.mark.slow, id=path.stem)
    for path in EXAMPLES
]


@pytest.mark.parametrize("path", RUNS)
def test_it_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(path))["main"]
    files = {"file": "model.nnopt"} if "file" in inspect.signature(main).parameters else {}
    main(2, **files)
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert re.search(r"\d", last), f"the last line gives no figure: {last}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_fits_a_screen_or_two_and_says_how_to_run_it(path):
    text = path.read_text()
    assert re.fullmatch(r"\d\d_[a-z_]+\.py", path.name)
    assert len(text.splitlines()) < 80
    assert f"python examples/{path.name}" in text
