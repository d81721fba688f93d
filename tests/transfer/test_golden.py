"""Merges and losses against kept answers of mergekit and torchdistill."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from nnopt_jax.transfer import attention_loss, distillation_loss, hint_loss, slerp, ties
from nnopt_jax.zoo.losses import cross_entropy

GOLDEN = pathlib.Path(__file__).parents[1] / "reference" / "golden"
MERGED, LOSSES = (dict(np.load(GOLDEN / f"{name}.npz")) for name in ("mergekit", "torchdistill"))
WEIGHTS = ([1.0, 1.0, 1.0], [0.5, 0.3, 0.9])


def of(kind):
    return [name for name in (*MERGED, *LOSSES) if name.startswith(f"{kind}/")]


@pytest.mark.parametrize("name", [*of("slerp"), *of("slerp_near")])
def test_slerp_is_mergekits(name):
    kind, t = name.split("/")
    other = MERGED["near"] if kind == "slerp_near" else MERGED["models"][1]
    np.testing.assert_allclose(slerp(MERGED["models"][0], other, float(t)), MERGED[name], atol=1e-6)


@pytest.mark.parametrize("name", of("ties"))
def test_ties_is_mergekits(name):
    _, density, number = name.split("/")
    base, *models = MERGED["models"]
    found = ties(base, models, WEIGHTS[int(number)], density=float(density), scale=0.7)
    np.testing.assert_allclose(found, MERGED[name], atol=1e-6)


@pytest.mark.parametrize("name", of("kd"))
def test_distillation_is_torchdistills(name):
    student, teacher = LOSSES["student"], LOSSES["teacher"]
    soft = distillation_loss(student, teacher, float(name.split("/")[1]))
    found = 0.7 * soft + 0.3 * cross_entropy(student, LOSSES["labels"].astype(np.int32))
    np.testing.assert_allclose(found, LOSSES[name], rtol=1e-6)


@pytest.mark.parametrize(("name", "distance"), [("code", "square"), ("paper", "norm")])
def test_attention_is_torchdistills(name, distance):
    found = attention_loss(LOSSES["student_map"], LOSSES["teacher_map"], distance=distance)
    np.testing.assert_allclose(found, LOSSES[f"attention/{name}"], rtol=1e-6)


def test_hints_are_torchdistills():
    found = hint_loss(LOSSES["student_map"], LOSSES["teacher_map"], LOSSES["regressor"])
    np.testing.assert_allclose(found, LOSSES["hint"], rtol=1e-6)


def test_there_are_answers():
    assert [len(of(kind)) for kind in ("slerp", "slerp_near", "ties", "kd")] == [4, 4, 6, 3]
