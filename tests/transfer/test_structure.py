"""Structures: programs without their code, trees as they were, leaves drawn anew."""

from __future__ import annotations

import collections
import dataclasses
import fractions
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import nnopt_jax as nnopt
from nnopt_jax.errors import ArtifactError, SelectionError, ShapeError, ValueRangeError
from nnopt_jax.transfer import Structure, capture
from nnopt_jax.transfer.structure import encoding

Norm = collections.namedtuple("Norm", "scale bias")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Block:
    """A container that only this file knows; its fields are not in the order of their names."""

    up: jax.Array
    down: jax.Array
    norm: Norm


def parameters(dtype=jnp.float32):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(0.3 * rng.normal(size=shape) + 0.1, dtype)

    blocks = [
        Block(normal(8, 12), normal(12, 8), Norm(jnp.ones(8, dtype), jnp.zeros(8, dtype)))
        for _ in range(2)
    ]
    return {"embed": normal(32, 8), "blocks": blocks, "head": (normal(8, 5), None)}


def apply(params, batch):
    x = params["embed"][batch["tokens"]] * batch["weight"][..., None]
    for block in params["blocks"]:
        assert isinstance(block, Block)
        y = x - x.mean(-1, keepdims=True)
        y = y * block.norm.scale[None, None] + block.norm.bias[None, None]
        x = x + jnp.tanh(y @ block.up) @ block.down
    return Norm(x @ params["head"][0], x.mean(1))


def batch(b, t):
    rng = np.random.default_rng(b)
    weight = rng.normal(size=(b, t)).astype(np.float32)
    return {"tokens": jnp.asarray(rng.integers(0, 32, (b, t))), "weight": jnp.asarray(weight)}


@pytest.fixture(scope="module")
def structure():
    captured = capture(
        apply,
        parameters(),
        batch(1, 1),
        shapes=[{"tokens": "b, t", "weight": "b, t"}],
        constraints=["t <= 16"],
        constructor=fractions.Fraction,
        config={"numerator": 3, "denominator": 6},
    )
    return Structure.from_bytes(captured.to_bytes())


@pytest.mark.parametrize("sizes", [(2, 7), (5, 16)])
def test_a_program_computes_what_its_source_does(structure, sizes):
    params, x = parameters(), batch(*sizes)
    got, expected = jax.jit(structure.apply)(params, x), jax.jit(apply)(params, x)
    assert list(got) == ["bias", "scale"]  # containers of the code come out as dictionaries
    np.testing.assert_array_equal(got["scale"], expected.scale)
    np.testing.assert_array_equal(got["bias"], expected.bias)


def test_it_differentiates(structure):
    params, x = parameters(), batch(2, 7)

    def of(function, name):
        return lambda p: (name(function(p, x)) ** 2).mean()

    got = jax.jit(jax.grad(of(structure.apply, lambda out: out["scale"])))(params)
    expected = jax.jit(jax.grad(of(apply, lambda out: out.scale)))(params)
    assert jax.tree.structure(got) == jax.tree.structure(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), got, expected)


def test_the_tree_is_rebuilt_without_the_classes(structure):
    tree = structure.parameters
    assert type(tree["blocks"]) is list
    assert type(tree["head"]) is tuple
    assert tree["head"][1] is None
    assert sorted(tree["blocks"][0]) == ["down", "norm", "up"]
    fresh = structure.initialize(jax.random.key(0))
    assert jax.tree.structure(fresh) == jax.tree.structure(tree)
    assert structure.apply(fresh, batch(3, 4))["scale"].shape == (3, 4, 5)


def test_leaves_begin_as_they_were_measured(structure):
    rng = np.random.default_rng(3)
    params = {
        "w": jnp.asarray(rng.normal(size=(64, 64)).astype(np.float32) * 0.02 + 0.5),
        "half": jnp.full(3, 0.5, jnp.bfloat16),
        "count": jnp.int32(7),
        "scale": jnp.ones(4),
        "bias": jnp.zeros(4),
    }
    made = capture(lambda p: p["w"], params)
    start = made.starts["w"]
    assert start["mean"] == pytest.approx(np.asarray(params["w"], np.float64).mean(), rel=1e-12)
    assert start["std"] == pytest.approx(np.asarray(params["w"], np.float64).std(), rel=1e-12)
    fresh = made.initialize(jax.random.key(1))
    for path in ("half", "count", "scale", "bias"):
        assert fresh[path].dtype == params[path].dtype
        np.testing.assert_array_equal(fresh[path], params[path])
    assert float(fresh["w"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(fresh["w"].mean()) == pytest.approx(0.5, abs=0.002)
    again = Structure.from_bytes(made.to_bytes()).initialize(jax.random.key(1))
    np.testing.assert_array_equal(fresh["w"], again["w"])
    assert not np.array_equal(fresh["w"], made.initialize(jax.random.key(2))["w"])


def test_leaves_begin_as_they_are_told():
    shapes = {"a": {"kernel": jax.ShapeDtypeStruct((30, 40), "float32")}, "b": jnp.zeros(2)}
    told = {"**/kernel": "lecun_normal", "b": {"name": "constant", "value": 2.0}}
    made = capture(lambda p: p["b"], shapes, initializers=told)
    fresh = made.initialize(jax.random.key(0))
    np.testing.assert_array_equal(fresh["b"], [2, 2])
    assert float(fresh["a"]["kernel"].std()) == pytest.approx(30**-0.5, rel=0.1)
    with pytest.raises(ValueRangeError, match=r"a/kernel: was not measured"):
        capture(lambda p: p["b"], shapes).initialize(jax.random.key(0))


def test_wrong_initializers_are_told_together():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
    told = {"kernel": "lecun_nromal", "bias": "lecun_normal"}
    with pytest.raises(ValueRangeError, match=r"(?s)Did you mean lecun_normal.*bias: .*cannot"):
        capture(lambda p: p["bias"], params, initializers=told)
    with pytest.raises(SelectionError, match="kernl"):
        capture(lambda p: p["bias"], params, initializers={"kernl": "zeros"})


def test_training_may_differ():
    """Dropout and moving statistics: other inputs, other outputs."""
    params = {"w": jnp.arange(6.0).reshape(3, 2), "mean": jnp.zeros(3)}

    def evaluate(params, x):
        return (x - params["mean"][None]) @ params["w"]

    def train(params, x, key):
        kept = jax.random.bernoulli(key, 0.5, (3,)).astype(x.dtype)
        return (x * kept[None]) @ params["w"], {"mean": x.mean(0)}

    made = capture(
        evaluate, params, jnp.ones((1, 3)), shapes=["b, ..."],
        train=train, train_args=(jax.random.key(0),),
    )  # fmt: skip
    made = Structure.from_bytes(made.to_bytes())
    x, key = jnp.arange(12.0).reshape(4, 3), jax.random.key(5)
    np.testing.assert_array_equal(made.apply(params, x), evaluate(params, x))
    got, expected = made.train(params, x, key), train(params, x, key)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    slope = jax.grad(lambda p: made.train(p, x, key)[0].sum())(params)
    np.testing.assert_allclose(
        slope["w"], jax.grad(lambda p: train(p, x, key)[0].sum())(params)["w"]
    )
    with pytest.raises(SelectionError, match=r"Structure.train: there is none; give capture"):
        capture(evaluate, params, x).train(params, x)


def test_models_of_flax_travel_too():
    """NNX by its state, in which leaves are variables; Linen with batch statistics."""
    x = jax.random.normal(jax.random.key(0), (3, 4))
    graph, state = nnx.split(nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
    made = capture(lambda state, x: nnx.merge(graph, state)(x), state, x, shapes=["b, ..."])
    assert sorted(made.parameters) == ["bias", "kernel"]
    expected = x[:2] @ state["kernel"][...] + state["bias"][...][None]
    for params in (state, nnx.to_pure_dict(state)):
        np.testing.assert_allclose(made.apply(params, x[:2]), expected, atol=1e-6)

    norm = linen.BatchNorm()
    variables = norm.init(jax.random.key(0), x, use_running_average=True)
    made = capture(
        lambda v, x: norm.apply(v, x, use_running_average=True), variables, x, shapes=["b, ..."],
        train=lambda v, x: norm.apply(v, x, use_running_average=False, mutable=["batch_stats"]),
    )  # fmt: skip
    _, changed = made.train(variables, x)
    mean = 0.01 * np.asarray(x).mean(0)
    np.testing.assert_allclose(changed["batch_stats"]["mean"], mean, atol=1e-6)


def test_a_function_that_ignores_its_parameters_is_refused():
    with pytest.raises(ValueRangeError, match="reads none of the parameters"):
        capture(lambda p, x: x, {"w": jnp.ones(2), "b": jnp.ones(2)}, jnp.ones(2))


def test_packed_parameters_are_spread_out_inside():
    params = {"w": jax.random.normal(jax.random.key(0), (16, 8)), "b": jnp.ones(8)}
    tx = nnopt.chain(nnopt.pruning.magnitude(0.5, where="w"), nnopt.quantization.uniform(4))
    small = jax.jit(tx.pack)(params, jax.jit(tx.init)(params))

    def source(params, x):
        return x @ params["w"] + params["b"][None]

    made, x = capture(source, small, jnp.ones((1, 16)), shapes=["b, ..."]), jnp.ones((3, 16))
    expected = jax.jit(lambda p, x: source(nnopt.materialize(p), x))(small, x)
    np.testing.assert_array_equal(jax.jit(made.apply)(small, x), expected)
    dense = jax.jit(nnopt.materialize)(small)
    np.testing.assert_array_equal(jax.jit(made.apply)(dense, x), expected)


def test_a_program_may_have_no_backward_pass():
    def count(params, x):
        return jax.lax.while_loop(lambda i: i < x.sum(), lambda i: i + params["w"], jnp.float32(0))

    made = capture(count, {"w": jnp.float32(2)}, jnp.ones(3))
    assert made.apply({"w": jnp.float32(2)}, jnp.ones(3)) == 4
    assert not made.programs["apply"].about["differentiable"]


def test_it_names_the_platforms(structure):
    assert structure.programs["apply"].about["platforms"] == ["cpu", "cuda", "tpu"]
    made = capture(lambda p: p["w"], {"w": jnp.ones(1)}, platforms=["cpu"])
    assert made.programs["apply"].exported.platforms == ("cpu",)


def test_no_name_of_a_file_is_in_it(structure):
    data = structure.programs["apply"].data
    assert b"test_structure" not in data
    assert b".py" not in data
    assert jax.config.jax_traceback_in_locations_limit != 0


def test_the_constructor_is_called_where_its_code_is(structure):
    assert structure.construct() == fractions.Fraction(1, 2)
    made = capture(lambda p: p["w"], {"w": jnp.ones(1)}, constructor="no_such_module:f")
    with pytest.raises(SelectionError, match="no_such_module:f cannot be imported here"):
        made.construct()
    with pytest.raises(SelectionError, match="there is none"):
        capture(lambda p: p["w"], {"w": jnp.ones(1)}).construct()
    with pytest.raises(ValueRangeError, match=r"(?s)constructor=.*elsewhere.*config=.*not JSON"):
        capture(lambda p: p["w"], {"w": jnp.ones(1)}, constructor=lambda: 0, config={"a": {1}})


def test_it_prints_as_a_table(structure):
    lines = str(structure).splitlines()
    down = np.asarray(parameters()["blocks"][0].down, np.float64)
    said = f"blocks/0/down float32[12,8] mean {down.mean():.3g}, std {down.std():.3g}"
    assert lines[0].split() == said.split()
    assert lines[-3].split()[:3] == ["total", "712", "parameters"]
    assert "0/tokens int32[b,t], 0/weight float32[b,t] -> " in lines[-2]
    assert lines[-1].split() == [
        "made", "by", "fractions:Fraction(numerator=3,", "denominator=6)",
    ]  # fmt: skip
    assert json.loads(json.dumps(structure.describe())) == structure.describe()


def test_wrong_parameters_are_told_by_path(structure):
    params, x = parameters(), batch(2, 3)
    del params["embed"]
    params["embd"] = jnp.ones(2)
    with pytest.raises(
        SelectionError, match=r"(?s)embed: is missing.*mean embd.*embd: is not a param"
    ):
        structure.apply(params, x)
    params = parameters(jnp.bfloat16)
    params["embed"] = jnp.ones((31, 8))
    with pytest.raises(ShapeError, match=r"(?s)0/up: is bfloat16\[8,12\], the .*embed: .*\[32,8\]"):
        structure.apply(params, x)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda x: {"tokens": x["tokens"]}, SelectionError, "input 0/weight: is missing"),
        (lambda x: x | {"mask": 1}, SelectionError, "input 0/mask: is not one of the program's"),
        (lambda x: x | {"weight": x["weight"][0]}, ShapeError, r"0/weight: is float32\[3\], the"),
        (lambda x: x | {"weight": x["tokens"]}, ShapeError, r"0/weight: is int32\[2,3\], the"),
        (lambda x: x | {"weight": x["weight"][:1]}, ShapeError, "0/weight: .* with b=2 elsewhere"),
        (lambda x: batch(2, 17), ShapeError, "inputs of b=2, t=17, and t <= 16 must hold"),
    ],
)
def test_wrong_inputs_are_told_by_path(structure, change, kind, message):
    with pytest.raises(kind, match=message):
        structure.apply(parameters(), change(batch(2, 3)))


def test_wrong_shapes_are_told():
    for shapes, text in (
        (["b, 4"], "shapes=.*different size 4"),
        (["b, ...", None], "2 entries for 1 arguments"),
    ):
        with pytest.raises(ShapeError, match=text):
            capture(lambda p, x: x * p["w"], {"w": jnp.ones(1)}, jnp.ones((2, 2)), shapes=shapes)


def test_every_damaged_byte_is_found(structure):
    data = structure.to_bytes()
    for place in [*range(0, 30), *range(30, len(data), len(data) // 40), len(data) - 1]:
        damaged = bytearray(data)
        damaged[place] ^= 1
        with pytest.raises(ArtifactError):
            Structure.from_bytes(bytes(damaged))
    for length in (0, 3, 16, 17, 19, len(data) // 2, len(data) - 1):
        with pytest.raises(ArtifactError, match=r"not a structure|cut short|truncated"):
            Structure.from_bytes(data[:length])


def test_other_versions_and_sizes_are_refused(structure, monkeypatch):
    data = structure.to_bytes()
    with pytest.raises(ArtifactError, match=r"declares \d+ bytes, and max_bytes is 100"):
        Structure.from_bytes(data, max_bytes=100)
    with pytest.raises(ValueRangeError, match="max_bytes"):
        Structure.from_bytes(data, max_bytes=-1)
    monkeypatch.setattr(encoding, "VERSION", 9)
    newer = structure.to_bytes()
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="has version 9, this library reads 1"):
        Structure.from_bytes(newer)


@pytest.mark.parametrize(
    "head",
    [
        {},
        {"parameters": {"dict": {"w": ["float32", [2]]}}, "starts": [], "programs": {},
         "constructor": None},
        {"parameters": {"set": []}, "starts": [], "programs": {}, "constructor": None},
        {"parameters": None, "starts": [], "programs": {"apply": {}}, "constructor": None},
        [],
    ],
)  # fmt: skip
def test_sealed_nonsense_is_refused(head):
    with pytest.raises(ArtifactError, match="malformed"):
        Structure.from_bytes(encoding.encode_structure(head, []))


def test_more_than_declared_is_not_inflated():
    body = encoding._MAGIC + bytes([1, 5]) + zlib.compress(b"x" * 100)
    with pytest.raises(ArtifactError, match="malformed"):
        Structure.from_bytes(body + zlib.crc32(body).to_bytes(4, "little"))


def test_a_program_jax_cannot_read_says_who_wrote_it():
    made = capture(lambda p: p["w"], {"w": jnp.ones(1)})
    program = dataclasses.replace(made.programs["apply"], data=b"from the future")
    broken = dataclasses.replace(made, programs={"apply": program})
    again = Structure.from_bytes(broken.to_bytes())  # all else is there to be read
    assert again.initialize(jax.random.key(0)) == {"w": jnp.ones(1)}
    with pytest.raises(ArtifactError, match=f"jax {jax.__version__} wrote the program"):
        again.apply({"w": jnp.ones(1)})
