"""Projections of input features: against scikit-learn, in statistics, in training and on disk."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.decomposition import PCA
from sklearn.random_projection import SparseRandomProjection, johnson_lindenstrauss_min_dim

import nnopt_jax as nnopt
from nnopt_jax.compression import dimension, johnson_lindenstrauss, lift, pca, project, projected
from nnopt_jax.errors import NonFiniteError, ShapeError, ValueRangeError

RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(200, 12)) @ np.diag(np.linspace(3, 0.3, 12)) @ RNG.normal(size=(12, 12)) + 5


@pytest.mark.parametrize("whiten", [False, True])
def test_components_are_those_of_scikit_learn(whiten):
    theirs = PCA(4, whiten=whiten, svd_solver="full").fit(DATA)
    ours = pca(DATA, 4, whiten=whiten)
    mapped = np.asarray(project(ours, DATA))
    signs = np.sign((theirs.transform(DATA) * mapped).sum(0))
    np.testing.assert_allclose(mapped * signs, theirs.transform(DATA), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours["mean"], theirs.mean_, rtol=1e-6)
    back = theirs.inverse_transform(theirs.transform(DATA))
    np.testing.assert_allclose(lift(ours, mapped), back, rtol=1e-3, atol=1e-3)
    top = np.asarray(ours["matrix"])[np.abs(ours["matrix"]).argmax(0), range(4)]
    assert (top > 0).all()


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_energy_takes_as_many_components_as_scikit_learn(energy):
    theirs = PCA(energy, svd_solver="full").fit(DATA)
    assert pca(DATA, energy=energy)["matrix"].shape[1] == theirs.n_components_


def test_all_of_the_energy_is_all_that_varies():
    line = np.outer(RNG.normal(size=30), [3.0, 4.0, 0.0])
    assert pca(line, energy=1.0)["matrix"].shape == (3, 1)
    with pytest.raises(ValueRangeError, match="vary in 1 directions only"):
        pca(line, 2, whiten=True)


def test_batches_add_up():
    whole = pca(DATA, 5)
    batches = (DATA[start : start + 37].reshape(-1, 3, 4) for start in range(0, 200, 37))
    parts = pca(batches, 5)
    for name in ("matrix", "mean"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "settings", "error", "text"),
    [
        (DATA, {}, ValueRangeError, "give one of the two"),
        (DATA, {"components": 2, "energy": 0.5}, ValueRangeError, "give one of the two"),
        (DATA, {"components": 13}, ValueRangeError, "give at most 12"),
        (DATA[:3], {"components": 4}, ValueRangeError, "of 3 examples of 12 features"),
        (DATA, {"energy": 0.0}, ValueRangeError, "above 0 and at most 1"),
        (np.ones((5, 3)), {"energy": 0.5}, ValueRangeError, "do not vary"),
        (np.where(DATA > 9, np.nan, DATA), {"components": 2}, NonFiniteError, "NaN"),
        (DATA[0], {"components": 2}, ShapeError, r"give \(n, features\)"),
        ([DATA, DATA[:, :5]], {"components": 2}, ShapeError, "of 12 and of 5 features"),
        ([], {"components": 2}, ValueRangeError, "no data"),
    ],
)
def test_what_pca_refuses(x, settings, error, text):
    with pytest.raises(error, match=f"compression.pca: .*{text}"):
        pca(x, **settings)


@pytest.mark.parametrize(("samples", "epsilon"), [(10, 0.9), (5000, 0.5), (10**6, 0.1)])
def test_dimension_is_that_of_scikit_learn_rounded_up(samples, epsilon):
    theirs = johnson_lindenstrauss_min_dim(samples, eps=epsilon)
    assert theirs <= dimension(samples, epsilon) <= theirs + 1


@pytest.mark.parametrize("kind", ["gaussian", "sparse", "orthogonal"])
def test_distances_are_kept(kind):
    """All pairs of 40 points stay within epsilon, the lemma's promise; on average they are met."""
    points = RNG.normal(size=(40, 1000)).astype(np.float32)
    made = johnson_lindenstrauss(jax.random.key(1), 1000, samples=40, epsilon=0.6, kind=kind)
    assert made["matrix"].shape == (1000, dimension(40, 0.6))
    mapped = np.asarray(project(made, points))
    pairs = np.triu_indices(40, 1)
    before, after = (np.square(x[:, None] - x[None]).sum(-1)[pairs] for x in (points, mapped))
    ratio = after / before
    assert 0.4 < ratio.min() < ratio.max() < 1.6
    assert abs(ratio.mean() - 1) < 0.05


def test_sparse_entries_are_those_of_achlioptas():
    made = np.asarray(johnson_lindenstrauss(jax.random.key(2), 600, 50, kind="sparse")["matrix"])
    theirs = SparseRandomProjection(50, density=1 / 3, random_state=0).fit(np.zeros((2, 600)))
    values = np.unique(theirs.components_.toarray())
    np.testing.assert_allclose(np.unique(made), values, rtol=1e-6)
    shares = [(made == value).mean() for value in np.unique(made)]
    np.testing.assert_allclose(shares, [1 / 6, 2 / 3, 1 / 6], atol=0.01)


def test_orthogonal_columns_are_orthonormal_up_to_scale():
    made = johnson_lindenstrauss(jax.random.key(3), 30, 7, kind="orthogonal")["matrix"]
    np.testing.assert_allclose(made.T @ made, np.eye(7) * 30 / 7, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "give components, or both of the rest"),
        ({"components": 3, "samples": 5}, "give components, or both of the rest"),
        ({"samples": 5}, "give components, or both of the rest"),
        ({"components": 11, "kind": "orthogonal"}, "give at most 10 components"),
        ({"samples": 5000, "epsilon": 0.5}, "409 components of 10 features for samples=5000"),
        ({"samples": 5, "epsilon": 1.0}, "is not a number below 1"),
        ({"components": 2, "kind": "gauss"}, "Did you mean gaussian"),
    ],
)
def test_what_random_projections_refuse(settings, text):
    with pytest.raises(ValueRangeError, match=text):
        johnson_lindenstrauss(jax.random.key(0), 10, **settings)


def test_inputs_of_other_sizes_are_refused():
    made = pca(DATA, 2)
    with pytest.raises(ShapeError, match=r"inputs of shape \(3, 4\) have 4 features an example"):
        project(made, np.ones((3, 4)))
    with pytest.raises(ShapeError, match=r"\(2, 5\) is not \(batch, 2\)"):
        lift(made, np.ones((2, 5)))


@pytest.mark.parametrize("learned", [True, False])
def test_it_trains_with_the_model_or_stays(learned):
    apply = projected(lambda params, x: x @ params["kernel"], learned=learned)
    params = {"projection": pca(DATA, 3), "model": {"kernel": jnp.ones((3, 1))}}
    slopes = jax.grad(lambda p: apply(p, DATA[:8].astype(np.float32)).sum())(params)
    assert np.abs(slopes["model"]["kernel"]).max() > 0
    assert (np.abs(slopes["projection"]["matrix"]).max() > 0) == learned
    assert (np.abs(slopes["projection"]["mean"]).max() > 0) == learned


@pytest.mark.slow
def test_one_tree_for_optimizers_transforms_and_files(tmp_path):
    apply = projected(lambda params, x: x @ params["kernel"])
    params = {"projection": pca(DATA, 4), "model": {"kernel": jnp.ones((4, 2))}}
    tx = nnopt.quantization.uniform(8, granularity="channel")
    state, optimizer = tx.init(params), optax.sgd(1e-3)
    x = jnp.asarray(DATA[:16], jnp.float32)
    loss = lambda p: jnp.square(apply(p, x)).mean()  # noqa: E731
    _, grads = nnopt.value_and_grad(loss, tx)(params, state)
    moving = nnopt.trainable(tx, params, state)
    updates, _ = optimizer.update(grads.train, optimizer.init(moving), moving)
    params, state = nnopt.step(tx, params, state, updates, grads)
    small = tx.pack(params, state)
    assert small["projection"]["matrix"].codes.dtype == jnp.int8
    nnopt.save(tmp_path / "model.nnopt", small)
    loaded = nnopt.materialize(nnopt.load(tmp_path / "model.nnopt"))
    np.testing.assert_array_equal(apply(loaded, x), apply(tx.apply(params, state), x))
