"""What values print: settings and sizes on one line of 100 columns, no arrays, no addresses."""

import re

import jax
import jax.numpy as jnp
import pytest

import nnopt_jax as nnopt
from nnopt_jax import compression, parallel, pruning, quantization, transfer
from nnopt_jax.columns import WIDTH, brief
from nnopt_jax.report import LeafRow, Measure, Result
from nnopt_jax.transform import Start, Update
from nnopt_jax.zoo import bert, data, llama, transformer

PARAMS = {
    "a": {"kernel": jnp.linspace(-1, 1, 128).reshape(8, 16), "bias": jnp.full(16, 1 / 3)},
    "b": {"kernel": jnp.linspace(-1, 2, 64).reshape(16, 4), "bias": jnp.full(4, 202.99999)},
}
X = jnp.ones((2, 8))
METHODS = {
    "pruning.magnitude(sparsity=0.5, pattern='2:4')": pruning.magnitude(0.5, pattern="2:4"),
    "pruning.by_score(score=magnitude(), sparsity=0.3)": pruning.by_score(
        pruning.scores.magnitude(), 0.1 + 0.2
    ),
    "pruning.magnitude(sparsity=cubic(...), every=10)": pruning.magnitude(
        pruning.cubic(0.9, 100), every=10
    ),
    "pruning.structured(sparsity=0.5)": pruning.structured(0.5),
    "quantization.uniform(bits=4, group=32)": quantization.uniform(4, group=32),
    "quantization.on_grid(grid=nf4())": quantization.on_grid(quantization.grids.nf4()),
    "compression.codebook(clusters=16, learned=True)": compression.codebook(16, learned=True),
    "compression.tie(pairs={'b/kernel': 'a/kernel'})": compression.tie({"b/kernel": "a/kernel"}),
    "transfer.lora(rank=4)": transfer.lora(4),
    "at('a/*', quantization.uniform(bits=4))": nnopt.at("a/*", quantization.uniform(4)),
}  # fmt: skip
TX = nnopt.chain(pruning.magnitude(0.5), quantization.uniform(4))


def apply(params, x):
    hidden = jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    return hidden @ params["b"]["kernel"] + params["b"]["bias"][None]


def loss(params):
    return apply(params, X).sum()


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """One value of each kind, by name."""
    graph = nnopt.graph(apply, PARAMS, X)
    state = TX.init(PARAMS)
    packed = TX.pack(PARAMS, state)
    path = tmp_path_factory.mktemp("files") / "model.nnopt"
    nnopt.save(path, packed)
    plan, table = nnopt.plan(TX.bind(graph), PARAMS), pruning.measure_sparsity(packed)
    inspection, shards = nnopt.inspect(path), parallel.specs(PARAMS, parallel.mesh(data=-1))
    grafted = transfer.graft(PARAMS, PARAMS, [transfer.rules.keep("**")], strict=False)
    return {
        "tx": TX, "bound": TX.bind(graph), "plan": plan, "plan row": plan.rows[1],
        "state": state[0], "trainable": nnopt.trainable(TX, PARAMS, state),
        "grads": nnopt.value_and_grad(loss, TX)(PARAMS, state)[1],
        "start": Start(jax.random.key(0), {"gradient": PARAMS["a"]}),
        "update": Update(jnp.int32(3), PARAMS["a"]),
        "graph": graph, "axes": graph.axes, "coupled": graph.coupled, "uses": graph.uses,
        "use": graph.uses.of("a/kernel")[0], "dimension": graph.coupled.dimensions[0],
        "cost": graph.cost(), "observed": graph.observe(PARAMS, [(X,)], ("input_absmax",)),
        "on packed": nnopt.on_packed(apply), "report": nnopt.on_packed(apply).report(packed, X),
        "inspection": inspection, "file row": inspection.rows[0], "sparsity": table,
        "sparsity row": table.rows[1], "slot": nnopt.arrays.slots(PARAMS["a"]["kernel"])[0],
        "shards": shards, "shard row": shards.rows[0], "grafted": grafted,
        "graft report": grafted.report, "rule": transfer.rules.keep("**"),
        "selector": nnopt.tree.selector("a/*"), "role axes": nnopt.Axes(0, 1),
        "packed": packed["a"]["kernel"], "encoded": TX.encode(PARAMS, state)["a"]["kernel"],
        "score": pruning.scores.magnitude(), "grid": quantization.grids.uniform(4),
        "range": quantization.ranges.absmax(), "rounding": quantization.rounding.nearest(),
        "pattern": pruning.patterns.NOfM(2, 4), "measure": Measure("on disk", "bytes", 400, 20),
        "result": Result("demo", (Measure("on disk", "bytes", 400, 20),), (), (), "", ()),
        "leaf row": LeafRow("w", "Bits", (8,), 3, 8, 0), "data": data.digits(),
        "split": data.digits().train, "bert": bert.Bert(2), "llama": llama.Llama(2, 1),
        "transformer": transformer.row_transformer(jax.random.key(0))[1],
    }  # fmt: skip


def problems(text: str, width: int = WIDTH) -> list[str]:
    """What is wrong with what a value prints."""
    found = {
        "several lines": "\n" in text,
        "too wide": len(text) > width,
        "an array": re.search(r"Array\(|array\(|\[\[|\d\.? +\d", text),
        "an address": " at 0x" in text,
        "a long fraction": re.search(r"\d\.\d{7}", text),
    }
    return [name for name, is_found in found.items() if is_found]


def test_values_print_one_short_line(values):
    texts = {name: repr(value) for name, value in values.items()}
    widths = dict.fromkeys(("packed", "encoded"), 150)  # all fields of parameters in parameters
    wrong = {name: problems(text, widths.get(name, WIDTH)) for name, text in texts.items()}
    assert {name: (texts[name], found) for name, found in wrong.items() if found} == {}


@pytest.mark.parametrize("text", METHODS)
def test_transforms_print_how_they_were_made(text):
    assert repr(METHODS[text]) == text


def test_bound_transforms_say_so(values):
    made = "chain(pruning.magnitude(sparsity=0.5), quantization.uniform(bits=4))"
    assert repr(values["tx"]) == made
    assert repr(values["bound"]) == f"{made} bound to 2 leaves"
    long = nnopt.chain(*[pruning.magnitude(0.5)] * 9).bind(values["graph"])
    assert len(repr(long)) == WIDTH
    assert repr(long).endswith("...) bound to 2 leaves")


TABLES = ["plan", "graph", "axes", "coupled", "uses", "cost", "observed", "report", "inspection",
          "sparsity", "shards", "graft report", "result"]  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_print_and_render(values, name):
    assert str(values[name]) != repr(values[name])
    assert not re.search(r"\d\.\d{7}|Array\(| at 0x", str(values[name]))
    assert values[name]._repr_html_().startswith("<")


def test_states_print_under_jit():
    seen = []
    jax.jit(lambda params: seen.append(repr(pruning.magnitude(0.5).init(params))))(PARAMS)
    assert problems(seen[0]) == []


def test_an_array_an_address_and_a_long_fraction_are_found():
    text = f"Value(Array([[1.]]), {object()!r}, 202.99999999999272)"
    assert problems(text) == ["an array", "an address", "a long fraction"]
    assert brief({"w": jnp.ones(2), "b": None}) == "1 array"
    assert brief(lambda x: x) != repr(lambda x: x)
