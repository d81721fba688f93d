"""Distillation losses against NumPy and SciPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from nnopt_jax.errors import ShapeError, ValueRangeError
from nnopt_jax.transfer import (
    attention_loss,
    attention_map,
    distillation_loss,
    hint_loss,
    hint_regressor,
)

F32 = np.float32
RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 8, 10)).astype(F32)
MAPS = RNG.normal(size=(4, 5, 5, 6)).astype(F32), RNG.normal(size=(4, 5, 5, 12)).astype(F32)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_the_divergence_of_softened_predictions(temperature):
    p, q = (softmax(z.astype(float) / temperature, axis=-1) for z in (TEACHER, STUDENT))
    wanted = temperature**2 * rel_entr(p, q).sum(-1).mean()
    np.testing.assert_allclose(distillation_loss(STUDENT, TEACHER, temperature), wanted, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 20.0, 100.0, 1000.0])
def test_distillation_of_a_student_near_its_teacher(temperature):
    teacher = RNG.normal(size=(8, 10)).astype(F32)
    student = teacher + F32(0.01) * RNG.normal(size=(8, 10)).astype(F32)
    p, q = (softmax(z.astype(float) / temperature, axis=-1) for z in (teacher, student))
    wanted = temperature**2 * rel_entr(p, q).sum(-1).mean()
    np.testing.assert_allclose(distillation_loss(student, teacher, temperature), wanted, rtol=5e-3)
    slope = jax.grad(distillation_loss)(student, teacher, temperature)
    np.testing.assert_allclose(slope, temperature * (q - p) / 8, rtol=2e-2, atol=2e-6)


@pytest.mark.parametrize("student", [[0.0, 300.0], [-np.inf, 0.0], [90.0, -90.0]])
def test_distillation_of_a_student_far_from_its_teacher(student):
    teacher = F32([[50.0, 0.0]])
    p, q = (log_softmax(np.asarray(z, float), axis=-1) for z in (teacher[0], student))
    found = distillation_loss(F32([student]), teacher, 1.0)
    np.testing.assert_allclose(found, (np.exp(p) * (p - q)).sum(), rtol=1e-5, atol=1e-12)


def test_the_temperature_may_follow_a_schedule_under_jit():
    found = jax.jit(distillation_loss)(STUDENT, TEACHER, jnp.float32(4))
    wanted = distillation_loss(STUDENT, TEACHER, 4.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(distillation_loss(STUDENT, TEACHER, jnp.int32(4)), wanted, rtol=1e-5)


def test_its_gradient_is_the_difference_of_predictions():
    slope = jax.grad(distillation_loss)(STUDENT, TEACHER, 3.0)
    wanted = 3.0 * (softmax(STUDENT / 3.0, axis=-1) - softmax(TEACHER / 3.0, axis=-1)) / 8
    np.testing.assert_allclose(slope, wanted, atol=1e-6)
    assert not np.any(jax.grad(distillation_loss, argnums=1)(STUDENT, TEACHER))


def test_classes_that_the_teacher_excludes_do_no_harm():
    teacher = TEACHER.copy()
    teacher[:, 0] = -np.inf
    value, slope = jax.value_and_grad(distillation_loss)(STUDENT, teacher, 1.0)
    kept = softmax(teacher.astype(float), axis=-1)[:, 1:]
    wanted = (kept * (np.log(kept) - log_softmax(STUDENT, axis=-1)[:, 1:])).sum(-1).mean()
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert np.isfinite(slope).all()


def test_hints_go_through_the_regressor():
    regressor = hint_regressor(jax.random.key(0), 6, 12)
    wanted = np.square(MAPS[1] - MAPS[0] @ np.asarray(regressor)).mean()
    np.testing.assert_allclose(hint_loss(*MAPS, regressor), wanted, rtol=1e-5)
    np.testing.assert_allclose(
        hint_loss(STUDENT, TEACHER), np.square(STUDENT - TEACHER).mean(), rtol=1e-5
    )


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_attention_maps_have_norm_one(power):
    found = attention_map(MAPS[0], power)
    flat = (np.abs(MAPS[0].astype(float)) ** power).sum(-1).reshape(4, -1)
    np.testing.assert_allclose(found, flat / np.linalg.norm(flat, axis=1)[:, None], rtol=1e-5)


@pytest.mark.parametrize("power", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_attention_maps_know_no_scale(power, scale):
    flat = (np.abs(MAPS[0].astype(float)) ** power).sum(-1).reshape(4, -1)
    found = attention_map(MAPS[0] * F32(scale), power)
    np.testing.assert_allclose(found, flat / np.linalg.norm(flat, axis=1)[:, None], rtol=1e-4)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_zero_features_get_no_gradient(power):
    features = np.maximum(MAPS[0], 0)  # as after ReLU
    weight = RNG.normal(size=(4, 25)).astype(F32)
    slope = jax.grad(lambda x: (weight * attention_map(x, power)).sum())(features)
    assert np.isfinite(slope).all()
    assert not slope[features == 0].any()
    assert slope[features > 0].any()


def test_attention_loss_in_both_readings():
    one, other = (np.asarray(attention_map(x)) for x in MAPS)
    np.testing.assert_allclose(attention_loss(*MAPS), np.square(one - other).mean(), rtol=1e-5)
    wanted = np.linalg.norm(one - other, axis=1).mean()
    np.testing.assert_allclose(attention_loss(*MAPS, distance="norm"), wanted, rtol=1e-5)


@pytest.mark.parametrize("distance", ["square", "norm"])
@pytest.mark.parametrize("student", [jnp.zeros((2, 3, 1)), jnp.ones((2, 3, 1))])
def test_gradients_are_finite_where_nothing_is_felt_or_all_agrees(distance, student):
    teacher = jnp.ones((2, 3, 4))
    slope = jax.grad(lambda s: attention_loss(s, teacher, distance=distance))(student)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: distillation_loss(STUDENT, TEACHER, 0.0), ValueRangeError, "temperature=0.0"),
        (lambda: distillation_loss(STUDENT, TEACHER, jnp.zeros(())), ValueRangeError, "temper"),
        (lambda: distillation_loss(STUDENT, TEACHER, jnp.ones(2)), ValueRangeError, "temperature"),
        (lambda: distillation_loss(1.0, 2.0), ShapeError, "with one axis or more"),
        (lambda: distillation_loss(STUDENT, TEACHER[:, :5]), ShapeError, r"\(8, 10\).*\(8, 5\)"),
        (lambda: hint_loss(*MAPS), ShapeError, "give two of one shape"),
        (lambda: hint_loss(*MAPS, np.ones((6, 5))), ShapeError, r"\(6, 5\) does not lead"),
        (lambda: hint_regressor(0, 3, 4), ValueRangeError, "key is the int 0"),
        (lambda: hint_regressor(jax.random.key(0), 0, 3), ValueRangeError, "student=0"),
        (lambda: attention_loss(MAPS[0], MAPS[1][:, :4]), ShapeError, "other places"),
        (lambda: attention_loss(*MAPS, distance="l2"), ValueRangeError, "distance='l2'"),
        (lambda: attention_map(STUDENT), ShapeError, "no places"),
        (lambda: attention_map(MAPS[0], -1), ValueRangeError, "power=-1"),
    ],
)
def test_bad_input(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
