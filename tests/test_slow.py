"""The list of slow tests names tests that there are."""

from __future__ import annotations

import pathlib

FOLDER = pathlib.Path(__file__).parent


def test_every_slow_test_is_there():
    lines = (FOLDER / "slow.txt").read_text().splitlines()
    assert lines == sorted(set(lines))
    gone = []
    for line in lines:
        path, _, name = line.partition("::")
        file, function = FOLDER.parent / path, name.partition("[")[0]
        if path.startswith("tests/") and f"def {function}(" not in file.read_text():
            gone.append(line)
    assert gone == []
