"""The README: its Python runs, its commands are on one line each, its links lead somewhere."""

from __future__ import annotations

import pathlib
import re
import runpy

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.slow
def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        few = block.replace("steps=1500", "steps=2").replace("size=(2000, 128)", "size=(3, 8)")
        exec(compile(few, "readme.py", "exec"), scope)
    assert (tmp_path / "model.nnopt").stat().st_size < 300_000
    shown = scope["tx"].apply(scope["params"], scope["state"])
    for name, layer in scope["dense"].items():
        np.testing.assert_array_equal(layer["kernel"], shown[name]["kernel"])
    expected = scope["apply"](shown, scope["digits"].test.x)
    np.testing.assert_allclose(scope["logits"], expected, rtol=1e-4, atol=1e-4)


def test_its_length_and_its_commands():
    lines = TEXT.splitlines()
    assert len(lines) <= 130
    commands = [line for line in lines if line.startswith("python3 -m venv")]
    assert ["nnopt run" in line for line in commands] == [True, False]
    assert ["pytest" in line for line in commands] == [False, True]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            names = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in names, target


def test_the_picture_is_what_its_script_draws():
    drawn = runpy.run_path(str(ROOT / "docs" / "picture.py"))["picture"]()
    assert (ROOT / "docs" / "picture.svg").read_text() == drawn
