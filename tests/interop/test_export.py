"""Programs that take packed parameters, written by `jax.export` and run without their code."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import nnopt_jax as nnopt
from nnopt_jax.arrays import (
    ELL,
    BlockELL,
    Codebook,
    Factored,
    InputQuantized,
    LookupQuantized,
    Masked,
    Normalized,
    Powers,
    Quantized,
    Reshaped,
    SoftCodebook,
    SoftThresholded,
    Sum,
    UnevenGroups,
    is_node,
    store,
)
from nnopt_jax.arrays.nodes import NODE_TYPES, Node
from nnopt_jax.interop import Checkpoints
from nnopt_jax.ops.grid import expand
from nnopt_jax.ops.masks import keep_n_of_m


@pytest.fixture(scope="module")
def trees():
    """Nodes of every type, nested, in training and in storage form."""
    w = jax.random.normal(jax.random.key(0), (32, 8))
    few, many = jnp.abs(w) > 2, jnp.abs(w) > 0.5
    grid = Quantized(jnp.round(w * 4), jnp.full((1, 8), 0.25), jnp.ones((1, 8)), None, -16, 15)
    table = Quantized(jnp.array([-2.0, 0.0, 1.0, 2.0]), jnp.ones(1), low=-2, high=2)
    training = {
        "dense": w,
        "gaps": Masked(w, few),
        "csr": Masked(w, few, format="csr"),
        "two_of_four": Masked(w, keep_n_of_m(w, 2, 4), format="2:4"),
        "blocks": Masked(w, expand(w[::4, ::4] > 0, w.shape), format=(4, 4)),
        "bitmask": Masked(Codebook((w > 0).astype(jnp.int32), jnp.array([-0.5, 0.5])), many),
        "shared": Codebook(jnp.arange(256).reshape(32, 8) % 4, table),
        "sum": Sum(grid, Factored(w[:, :2], w[:2, :])),
        "turned": Normalized(Sum(grid, Factored(w[:, :2], w[:2, :])), jnp.ones((1, 8))),
        "shrunk": Masked(SoftThresholded(grid, jnp.float32(0.5)), few),
        "soft": SoftCodebook(w, jnp.array([-1.0, 1.0]), jnp.float32(0.5)),
        "view": Reshaped.of(w.T, (1, 0)),
        "levels": Masked(
            LookupQuantized((w > 0) * 1.0, Powers(jnp.full((4, 8), 125, jnp.uint8))), few
        ),
        "inputs": InputQuantized(grid, jnp.full((1, 1), 0.5)),
        "lists": ELL.of(w, few),
        "lists of blocks": BlockELL.of(w, (4, 8), few),
        "uneven": Quantized(
            jnp.round(w * 4), UnevenGroups(jnp.full((5, 8), 0.25), -2, 7, 32), low=-16, high=15
        ),
        "ternary": LookupQuantized(jnp.sign(w) + 1, jnp.ones((1, 8)), levels=(-1.0, 0.0, 1.0)),
    }
    return {"training": training, "stored": store(training)}


def nodes_within(tree):
    """The classes of all nodes of a tree, nested ones too."""
    found = {type(leaf) for leaf in jax.tree.leaves(tree, is_leaf=is_node) if is_node(leaf)}
    for leaf in jax.tree.leaves(tree, is_leaf=is_node):
        if is_node(leaf):
            found |= nodes_within([field for _, field in leaf.fields()])
    return found


def apply(params, x):
    return {name: x @ w for name, w in nnopt.materialize(params).items()}


@pytest.mark.parametrize("form", [pytest.param("training", marks=pytest.mark.slow), "stored"])
def test_a_serialized_program_keeps_the_type_of_its_parameters(trees, form):
    x = jnp.ones((4, 32))
    program = export.deserialize(export.export(jax.jit(apply))(trees[form], x).serialize())
    assert program.in_tree == jax.tree.structure(((trees[form], x), {}))
    expected = jax.jit(apply)(trees[form], x)
    jax.tree.map(np.testing.assert_array_equal, program.call(trees[form], x), expected)


def test_the_trees_hold_every_node_there_is(trees):
    ours = {cls for cls in NODE_TYPES.values() if cls.__module__.startswith("nnopt_jax.")}
    assert nodes_within(trees) >= ours
    assert all(issubclass(cls, Node) for cls in ours)


RUN = """
import sys, jax, numpy as np
from nnopt_jax.interop import Checkpoints
from nnopt_jax.ops.grid import expand
from nnopt_jax.ops.masks import keep_n_of_m
folder = sys.argv[1]
with open(f"{folder}/program", "rb") as file:
    program = jax.export.deserialize(file.read())
params, _ = Checkpoints(f"{folder}/params").restore()
np.savez(f"{folder}/outputs.npz", **program.call(params, np.load(f"{folder}/x.npy")))
"""


def test_another_process_runs_it_without_the_code(trees, tmp_path):
    x = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    with Checkpoints(tmp_path / "params") as checkpoints:
        checkpoints.save(0, trees["stored"])
    program = export.export(jax.jit(apply))(trees["stored"], x)
    (tmp_path / "program").write_bytes(program.serialize())
    subprocess.run([sys.executable, "-W", "error", "-c", RUN, str(tmp_path)], check=True)
    with np.load(tmp_path / "outputs.npz") as outputs:
        for name, expected in jax.jit(apply)(trees["stored"], x).items():
            np.testing.assert_array_equal(outputs[name], expected)
