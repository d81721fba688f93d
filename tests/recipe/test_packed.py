"""What a run measures is what the packed network does."""

from __future__ import annotations

from textwrap import dedent
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

import nnopt_jax as nnopt
from nnopt_jax import recipe as recipes
from nnopt_jax.interop.flax import adapt
from nnopt_jax.recipe import measurement as timing
from nnopt_jax.recipe.inputs import network
from nnopt_jax.recipe.recipe_plan import Carry
from nnopt_jax.recipe.runner import make_step

MODULE = """
from types import SimpleNamespace
import jax, numpy as np


def pair(key):
    return {"w": jax.random.normal(key, (6, 3)) * 0.1}, lambda params, x: x @ params["w"]


def blobs():
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = np.float32(rng.normal(size=(300, 6)) * 0.9 + np.eye(6)[y] * 2)
    split = SimpleNamespace(x=x, y=y.astype(np.int32))
    return SimpleNamespace(train=split, test=split)
"""
RECIPE = {
    "name": "rounded", "model": "packed_model:pair", "data": "packed_model:blobs",
    "batch_size": 50, "optimizer": {"source": "optax:adam", "learning_rate": 0.05},
    "stages": [{"name": "quantize", "epochs": 2, "transforms": [
        {"quantization.uniform": {"bits": 8}},
        {"quantization.quantize_activations": {"bits": 2}}]}],
}  # fmt: skip


def test_the_error_is_that_of_the_packed_network(tmp_path, monkeypatch):
    (tmp_path / "packed_model.py").write_text(dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    summary = recipes.run(recipes.build(RECIPE))
    measures = {m.name: m for m in summary.measures}
    from packed_model import blobs

    x, y = blobs().test.x, blobs().test.y
    w = nnopt.load("runs/rounded/model.nnopt")["w"].values
    codes = np.asarray(w.codes, int)  # of one scale, which no logit is greater by

    def errors(x):
        """In percent, where equal logits are right, and where they are wrong."""
        logits = x @ codes
        own = np.take_along_axis(logits, y[:, None], 1)
        others = np.where(np.eye(3, dtype=bool)[y], -np.inf, logits).max(-1, keepdims=True)
        return 100 * np.mean(own < others), 100 * np.mean(own <= others)

    scale = np.abs(x).max(-1, keepdims=True)  # the codes of 2 bits are -1, 0 and 1
    least, most = errors(np.clip(np.rint(x / scale), -1, 1).astype(int))
    assert least - 1e-4 <= measures["test error"].after <= most + 1e-4
    assert w.scale.size == 1
    assert min(abs(errors(x)[0] - bound) for bound in (least, most)) > 1  # the dense one is another
    assert measures["latency"].before > 0
    assert measures["latency"].note.startswith("batch of 128, packed ")
    assert measures["prepacked"].after > 0
    assert measures["prepacked"].note.startswith("by nnopt.prepack before serving, ")
    assert summary.notes[0] == "No packed leaf is materialized inside the call."
    assert [leaf.call for leaf in summary.leaves] == ["packed"]


def test_the_training_step_takes_leaves_that_round_their_inputs(tmp_path, monkeypatch):
    (tmp_path / "stepped_model.py").write_text(dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    names = {"model": "stepped_model:pair", "data": "stepped_model:blobs"}
    plan = recipes.prepare(recipes.build(RECIPE | names))
    (phase,), (x, y) = plan.phases, plan.data.train
    first = phase.abstract_begin(Carry(plan.model.params, plan.model.extra, (), None), plan.key)
    after, loss = jax.eval_shape(make_step(plan, phase), first, x[:50], y[:50], 1)
    assert jax.tree.structure(after) == jax.tree.structure(first)
    assert loss.shape == ()


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class Counted(nnx.Module):
    """Holds integers, a boolean, keys and running means beside its parameters."""

    def __init__(self, rngs):
        self.inner = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(16, 3, rngs=rngs)
        self.calls, self.on = nnx.Variable(jnp.int32(7)), nnx.Variable(jnp.array(True))

    def __call__(self, x):
        x = self.drop(self.norm(self.inner(x)))
        return self.out(jnp.where(self.on[...], x, 0.0)) + self.calls[...]


MODELS = {
    "linen": lambda: Normalized(),
    "nnx": lambda: Counted(nnx.Rngs(0)),
    "pair": lambda: (
        {"out": {"kernel": jnp.eye(8)}},
        lambda params, x: x @ params["out"]["kernel"],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_runs_packed(name):
    x = jax.random.normal(jax.random.key(1), (4, 8))
    model = adapt(MODELS[name](), x, jax.random.key(0))
    tx = nnopt.quantization.uniform(8, granularity="channel", where="**/kernel")
    packed = tx.pack(model.params, tx.init(model.params))
    run = network(model)
    uses = run.report(packed, model.extra, x).uses
    met = {use.path for use in uses if use.primitive == "dot_general" and not use.reason}
    kernels = {path for path in nnopt.tree.flatten(model.params) if path.endswith("kernel")}
    assert met == kernels
    wanted = model.apply(nnopt.materialize(packed), model.extra, x)[0]
    found = jax.jit(run)(packed, model.extra, x)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_calls_take_turns_and_ratios_are_those_of_neighbors(monkeypatch):
    now, calls = [0.0], []
    speeds = iter([1.0] * 4 + [10.0] * 4)  # the machine slows down, for both

    def run(params, x):
        if len(calls) % 2 == 0:
            run.slow = next(speeds, 10.0)
        calls.append(params)
        now[0] += run.slow * {"dense": 0.003, "packed": 0.001}[params]
        return x

    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(timing, "time", clock)
    found = timing.latency(run, "dense", "packed", 1.0, rounds=6, seconds=100.0)
    assert calls == ["dense", "packed"] + ["dense", "packed", "packed", "dense"] * 3
    assert found.ratio == pytest.approx(3.0)
    assert (found.dense_least, found.packed_least) == (pytest.approx(3.0), pytest.approx(1.0))
    calls.clear()
    timing.latency(run, "dense", "packed", 1.0, rounds=99, seconds=0.0)
    assert len(calls) == 2 * (1 + timing.FEWEST)
