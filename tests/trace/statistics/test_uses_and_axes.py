"""Uses and axes are two analyses of one program; where both speak of a leaf they agree."""

from __future__ import annotations

import pytest

import nnopt_jax as nnopt
from tests.trace.zoo.models import MODELS

UNMEASURED = {
    ("linen_weight_norm", "params/Dense_1/kernel"): "mul sums over none of it",
    ("shard_map", "a"): "it is carried through shard_map",
}
"""Leaves that have axes, and whose inputs no statistic knows."""


@pytest.mark.parametrize("name", MODELS)
def test_they_agree_for_every_leaf(name):
    case = MODELS[name]()
    graph = nnopt.graph(case.apply, case.params, *case.args)
    for path in {use.path for use in graph.uses}:
        uses = [(use.contracted, use.batch) for use in graph.uses.of(path) if not use.reason]
        axes = [
            (tuple(sorted(one.contracted)), tuple(sorted(one.batch)))
            for one in graph.axes.uses.get(path, ())
        ]
        if (name, path) in UNMEASURED:
            reasons = {use.reason for use in graph.uses.of(path)}
            assert uses == []
            assert axes
            assert reasons == {UNMEASURED[name, path]}
        else:
            assert sorted(uses) == sorted(axes), path
