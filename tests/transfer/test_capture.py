"""What `capture` and `Structure` take: meshes, keys, platforms, initializers, mistakes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nnopt_jax.errors import ArtifactError, CompositionError, ShapeError, ValueRangeError
from nnopt_jax.transfer import Structure, capture, load_model, save_model

PARAMS = {"k": jnp.arange(6.0).reshape(3, 2)}


def apply(params, x):
    return x @ params["k"]


def captured(params=PARAMS, **settings):
    return capture(apply, params, jnp.ones((1, 3)), shapes=["b, ..."], **settings)


@pytest.mark.parametrize(
    ("start", "text"),
    [
        ({"name": "normal", "stddev": np.float32(0.02)}, "that JSON can say .*float32"),
        ({"name": "normal", "stddev": jnp.float32(0.02)}, "that JSON can say"),
        ({"name": "constant", "value": float("nan")}, "that JSON can say"),
        ({"name": "constant"}, "k: .*cannot make it .*'value'"),
        (3, "=3 is neither a name nor a mapping"),
    ],
)
def test_initializers_that_cannot_be_saved_are_refused_at_once(start, text):
    with pytest.raises(ValueRangeError, match=text):
        captured(initializers={"k": start})


def test_initializers_that_are_json_travel():
    scaling = {"name": "variance_scaling", "scale": 2, "mode": "fan_in", "distribution": "normal",
               "in_axis": (0,), "out_axis": 1}  # fmt: skip
    made = captured(initializers={"k": scaling})
    again = Structure.from_bytes(made.to_bytes())
    key = jax.random.key(0)
    np.testing.assert_array_equal(again.initialize(key)["k"], made.initialize(key)["k"])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_program_is_for_one_device_wherever_its_parameters_lay(kind):
    mesh = jax.make_mesh((2, 4), ("a", "b"), (kind, kind))
    kernel = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    split = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec("a", "b")))
    x = jax.device_put(np.ones((8, 4), np.float32), NamedSharding(mesh, PartitionSpec("b", "a")))
    made = capture(apply, {"k": split}, x, shapes=["b, ..."])
    assert made.programs["apply"].exported.nr_devices == 1
    found = made.apply({"k": kernel}, np.ones((2, 4), np.float32))
    np.testing.assert_allclose(found, np.ones((2, 4)) @ kernel, rtol=1e-5)


def test_keys_may_be_parameters(tmp_path):
    def noisy(params, x):
        return x @ params["k"] + jax.random.normal(params["key"], (2,))[None]

    params = PARAMS | {"key": jax.random.key(7)}
    save_model(tmp_path / "m", capture(noisy, params, jnp.ones((1, 3)), shapes=["b, ..."]), params)
    found = load_model(tmp_path / "m")(jnp.ones((4, 3)))
    np.testing.assert_allclose(found, noisy(params, jnp.ones((4, 3))), rtol=1e-6)


@pytest.mark.parametrize(
    ("platforms", "text"),
    [
        ("cpu", "platforms='cpu' is not a sequence"),
        ([], "is not a sequence"),
        (["cpus"], "Did you mean cpu"),
        (["xpu", 3], "2 problems"),
    ],
)
def test_platforms_are_checked(platforms, text):
    with pytest.raises(ValueRangeError, match=text):
        captured(platforms=platforms)


def test_a_program_for_other_platforms_says_so():
    with pytest.raises(ArtifactError, match=r"runs on tpu, and the backends here are .*cpu"):
        captured(platforms=("tpu",)).apply(PARAMS, jnp.ones((1, 3)))


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda s, f: s.apply(PARAMS, jnp.ones((0, 3))), ShapeError, "of 1 or more"),
        (lambda s, f: s.initialize(0), ValueRangeError, "key is the int 0"),
        (lambda s, f: Structure.from_bytes("text"), ValueRangeError, "is not bytes"),
        (lambda s, f: save_model(f, PARAMS, s), ValueRangeError, "structure is of type dict"),
        (
            lambda s, f: save_model(f, s, jax.eval_shape(lambda: PARAMS)),
            CompositionError,
            "k: is a shape",
        ),
    ],
)
def test_mistakes_are_told(call, kind, text, tmp_path):
    with pytest.raises(kind, match=text):
        call(captured(), tmp_path / "m")
    assert not list(tmp_path.iterdir())
