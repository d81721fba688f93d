"""Processes that save as one hold the same, or are told where not."""

from __future__ import annotations

import pytest

from nnopt_jax.interop import Checkpoints
from tests.parallel.pair import ends, pair

SAVE = """
    import numpy as np
    from nnopt_jax.interop import Checkpoints
    with Checkpoints({folder!r}) as checkpoints:
        checkpoints.save(1, {tree})
"""


@pytest.mark.parametrize(
    ("tree", "texts"),
    [
        (
            "{'a': np.ones(3), 'b': np.arange(2) + process, 'c': process}",
            ["b: is another value in process 1 than in process 0", "c: is another value"],
        ),
        ("[1] * (process + 1)", ["holds {} leaves, another one other leaves"]),
    ],
)
def test_both_are_told_where_they_differ(tree, texts, tmp_path):
    folder = tmp_path / "run"
    body = SAVE.format(folder=str(folder), tree=tree)
    for number, (code, _, words) in enumerate(ends(pair(body, body))):
        assert code == 1
        for text in ["CheckpointError: Checkpoints.save: step 1: ", *texts]:
            assert text.format(number + 1) in words
        assert "a: is another" not in words
    assert Checkpoints(folder).steps() == []
