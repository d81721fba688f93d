"""The loss and the metric against SciPy and scikit-learn."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.metrics import accuracy_score, log_loss

from nnopt_jax.errors import ShapeError, ValueRangeError
from nnopt_jax.zoo.losses import cross_entropy, error_rate


def drawn(rows=50, classes=7):
    rng = np.random.default_rng(1)
    logits = 3 * rng.standard_normal((rows, classes), np.float32)
    return logits, rng.integers(0, classes, rows)


def test_cross_entropy_is_scikit_learns_log_loss():
    logits, labels = drawn()
    p = np.exp(logits.astype(np.float64) - logsumexp(logits, axis=1, keepdims=True))
    want = log_loss(labels, p / p.sum(1, keepdims=True), labels=range(7))
    assert float(cross_entropy(jnp.asarray(logits), labels)) == pytest.approx(want, rel=1e-5)


def test_cross_entropy_of_bfloat16_is_computed_in_float32():
    logits, labels = drawn()
    half = jnp.asarray(logits, jnp.bfloat16)
    got = cross_entropy(half, labels)
    assert got.dtype == jnp.float32
    assert got == cross_entropy(half.astype(jnp.float32), labels)


def test_cross_entropy_stays_finite_for_large_logits():
    assert cross_entropy(jnp.array([[1e30, -1e30]]), jnp.array([0])) == 0


@pytest.mark.parametrize("label", [-1, 7])
def test_a_label_outside_the_classes_is_not_silent(label):
    logits, labels = drawn()
    assert jnp.isnan(cross_entropy(jnp.asarray(logits), np.append(labels[1:], label)))


def test_error_rate_is_one_less_accuracy():
    logits, labels = drawn()
    want = 1 - accuracy_score(labels, logits.argmax(1))
    assert float(error_rate(jnp.asarray(logits), labels)) == pytest.approx(want)


def test_sequences_count_as_rows():
    logits, labels = drawn(60)
    shaped = logits.reshape(4, 15, 7), labels.reshape(4, 15)
    for function in (cross_entropy, error_rate):
        flat = function(jnp.asarray(logits), labels)
        np.testing.assert_allclose(function(jnp.asarray(shaped[0]), shaped[1]), flat, rtol=1e-6)


@pytest.mark.parametrize("function", [cross_entropy, error_rate])
def test_one_hot_labels_are_refused_by_name(function):
    with pytest.raises(ShapeError, match=rf"{function.__name__}.*\(5,\), got \(5, 7\).*argmax"):
        function(jnp.zeros((5, 7)), jnp.zeros((5, 7)))


@pytest.mark.parametrize("function", [cross_entropy, error_rate])
def test_labels_that_are_no_integers_are_refused(function):
    with pytest.raises(ValueRangeError, match="labels are float32, wanted integers"):
        function(jnp.zeros((2, 4)), jnp.array([0.0, 3.0]))
