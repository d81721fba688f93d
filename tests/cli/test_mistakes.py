"""What a user gets wrong: one clear message, exit status 2, nothing written."""

from __future__ import annotations

import os
import sys

import pytest

from nnopt_jax.cli import main

# The settings of one run, and what the message must hold.
MISTAKES = {
    "misspelled key": (["sede=1"], ["sede: unknown key. Did you mean seed?"]),
    "misspelled key inside": (
        ["stages.1.epoch=4", "batchsize=2"],
        ["2 problems", "stages.1.epoch: unknown key. Did you mean epochs?", "batchsize: unknown"],
    ),
    "wrong type": (["batch_size=many"], ["batch_size: given 'many' (a string), wanted a whole"]),
    "misspelled setting of a method": (
        ["stages.prune.transforms.pruning.magnitude.sparsty=0.5"],
        ["stages.1.transforms.0.pruning.magnitude.sparsty: unknown key. Did you mean sparsity?"],
    ),
    "misspelled method": (
        ["stages.0.transforms=[pruning.magnitud: {sparsity: 0.5}]"],
        ["stages.0.transforms.0: no method 'pruning.magnitud'. Did you mean pruning.magnitude?"],
    ),
    "rule that matches nothing": (
        ["stages.prune.transforms.0.pruning.magnitude.where='**/kernl'"],
        ["rule '**/kernl' matched no leaf", "hidden/kernel", "nnopt plan RECIPE --list"],
    ),
    "no such module": (["model=main:net"], ["model: there is no module 'main'"]),
    "no such function": (["model=mine:nett"], ["model: module mine has no 'nett'", "mean net?"]),
    "argument the model lacks": (
        ["model.widht=9"],
        ["model.widht: unknown key. Did you mean width?"],
    ),
    "classes that do not fit": (
        ["model.classes=2"],
        ["gives 2 logits", "labels of the train split go from 0 to 2", "--set model.classes=3"],
    ),
    "no data folder": (
        ["data={source: nnopt_jax.zoo.data:mnist, dir: no/such/folder}"],
        ["no/such/folder (there is no such folder)", "nnopt data mnist"],
    ),
    "too few examples": (["batch_size=500"], ["batch_size: given 500, wanted at most 160"]),
    "setting out of range": (
        ["stages.share.transforms.1.quantization.uniform.bits=99"],
        ["quantization.uniform: bits=99"],
    ),
    "override that leads nowhere": (["stages.last.epochs=1"], ["no element 'last'", "Known:"]),
    "override without a value": (["seed"], ["--set seed: write KEY=VALUE"]),
}


@pytest.fixture
def here(project, monkeypatch):
    """The process itself in the project's folder, as the command starts."""
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(sys, "path", [str(project.folder), *sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told(here, capsys, mistake):
    settings, wanted = MISTAKES[mistake]
    options = [part for setting in settings for part in ("--set", setting)]
    assert main(["run", "recipe.yaml", *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("nnopt: ")
    for text in wanted:
        assert text in said
    assert not os.path.exists("runs")


def test_a_mistake_in_the_real_command(project):
    status, out, err = project.nnopt("run", "recipe.yaml", "--set", "sede=1")
    assert (status, out) == (2, "")
    assert err == "nnopt: recipe: sede: unknown key. Did you mean seed?\n"


def test_divergence_names_the_leaf(here, capsys):
    rate = "optimizer={source: optax:sgd, learning_rate: 1e30}"
    assert main(["run", "recipe.yaml", "--set", rate]) == 2
    said = capsys.readouterr().err
    assert "stage 'train' diverged by step 5" in said
    assert "hidden/kernel" in said
    assert "smaller learning rate" in said


def test_list_works_where_a_rule_matches_nothing(here, capsys):
    rule = "stages.prune.transforms.0.pruning.magnitude.where='**/kernl'"
    assert main(["plan", "recipe.yaml", "--list", "--set", rule]) == 0
    assert "hidden/kernel  float32[6,8]" in capsys.readouterr().out.splitlines()
