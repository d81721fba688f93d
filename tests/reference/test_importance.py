"""Scores of whole neurons against torch-pruning, on an equal MLP and equal data."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt

pytestmark = pytest.mark.reference
DRAW = np.random.default_rng(11)
X, Y = (DRAW.normal(size=(7, n)).astype(np.float32) for n in (6, 4))
PARAMS = {
    "fc1": {"kernel": DRAW.normal(size=(6, 8)).astype(np.float32)},
    "fc2": {"kernel": DRAW.normal(size=(8, 4)).astype(np.float32)},
}


def _loss(params, x, y):
    hidden = jnp.tanh(x @ params["fc1"]["kernel"])
    return ((hidden @ params["fc2"]["kernel"] - y) ** 2).mean()


def _torch_scores(kind):
    """What torch-pruning says of each of the 8 hidden neurons: both their kernels, summed."""
    torch = pytest.importorskip("torch")
    tp = pytest.importorskip("torch_pruning")

    model = torch.nn.Sequential(
        torch.nn.Linear(6, 8, bias=False), torch.nn.Tanh(), torch.nn.Linear(8, 4, bias=False)
    )
    with torch.no_grad():
        for layer, name in ((model[0], "fc1"), (model[2], "fc2")):
            layer.weight.copy_(torch.from_numpy(PARAMS[name]["kernel"].T.copy()))
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    settings = {"group_reduction": "sum", "normalizer": None}
    if kind == "fisher":
        # Of one example: in 1.6.0 `accumulate_grad` keeps the squares of the last one only.
        scorer = tp.importance.HessianImportance(**settings)
        ((model(x[:1]) - y[:1]) ** 2).mean().backward()
        scorer.accumulate_grad(model)
    else:
        ((model(x) - y) ** 2).mean().backward()
        scorer = {
            "magnitude": lambda: tp.importance.MagnitudeImportance(p=1, **settings),
            "taylor": lambda: tp.importance.TaylorImportance(**settings),
        }[kind]()
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    return scorer(graph.get_pruning_group(model[0], tp.prune_linear_out_channels, list(range(8))))


def _of_neurons(score):
    return np.asarray(score("fc1").sum(0) + score("fc2").sum(1))


def test_taylor():
    stats = nnopt.graph(_loss, PARAMS, X, Y).observe(PARAMS, [(X, Y)], "gradient")
    state = nnopt.pruning.taylor(0.5, power=1).init(PARAMS, stats=stats)
    # Adds to the memory of `init` what `update` would: the same gradient, the same scores.
    _, state = nnopt.pruning.taylor(0.5, power=1).update(
        PARAMS, state, grads=nnopt.Grads(None, stats["gradient"])
    )
    found = _of_neurons(lambda name: state.rest[f"{name}/kernel"]["memory"])
    np.testing.assert_allclose(found, _torch_scores("taylor").numpy(), rtol=1e-4)


def test_fisher():
    one = X[:1], Y[:1]
    stats = nnopt.graph(_loss, PARAMS, *one).observe(PARAMS, [one], "fisher")
    state = nnopt.pruning.fisher(0.5).init(PARAMS, stats=stats)
    found = _of_neurons(
        lambda name: PARAMS[name]["kernel"] ** 2 * state.rest[f"{name}/kernel"]["memory"]
    )
    np.testing.assert_allclose(found, _torch_scores("fisher").numpy(), rtol=1e-4)


@pytest.mark.parametrize("kind", ["magnitude", "taylor", "fisher"])
def test_blocks_of_whole_neurons_are_ranked_alike(kind):
    """Blocks as tall as a kernel are neurons: those kept are the greatest of torch-pruning."""
    torch = pytest.importorskip("torch")
    tp = pytest.importorskip("torch_pruning")

    layer = torch.nn.Linear(6, 8, bias=False)
    kernel = PARAMS["fc1"]["kernel"]
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(kernel.T.copy()))
    (layer(torch.from_numpy(X)) ** 2).mean().backward()
    name = {"magnitude": "Magnitude", "taylor": "Taylor", "fisher": "Hessian"}[kind]
    settings = {"p": 1} if kind == "magnitude" else {}
    scorer = getattr(tp.importance, f"{name}Importance")(normalizer=None, **settings)
    if kind == "fisher":
        scorer.accumulate_grad(layer)
    graph = tp.DependencyGraph().build_dependency(layer, example_inputs=torch.from_numpy(X))
    scores = scorer(graph.get_pruning_group(layer, tp.prune_linear_out_channels, list(range(8))))

    params = {"kernel": kernel}
    loss = nnopt.graph(lambda p, x: ((x @ p["kernel"]) ** 2).mean(), params, X)
    seen = loss.observe(params, [X], ("gradient", "fisher"))
    settings = {"power": 1} if kind == "taylor" else {}
    for kept in (1, 3, 6):
        tx = getattr(nnopt.pruning, kind)(1 - kept / 8, pattern=(6, 1), **settings)
        stats = {name: seen[name] for name in tx.needs}
        mask = np.asarray(tx.init(params, stats=stats).rest["kernel"]["mask"])
        wanted = np.isin(np.arange(8), np.argsort(-scores.numpy())[:kept])
        np.testing.assert_array_equal(mask, np.broadcast_to(wanted, (6, 8)))
