"""Values of the analysis print short settings as `repr`, and their tables as `str` and in pages."""

from __future__ import annotations

import html

import jax
import jax.numpy as jnp
import pytest

import nnopt_jax as nnopt
from nnopt_jax.trace import input_absmax, input_gram, input_histogram, input_range

PARAMS = {f"a_long_name_of_a_layer_{i}/kernel": jnp.full((16, 16), 1 / 3) for i in range(12)}


def network(params, x):
    for kernel in params.values():
        x = jax.nn.relu(x @ kernel)
    return x


@pytest.fixture(scope="module")
def values():
    x = jnp.full((8, 16), 202.99999999999272)
    graph = nnopt.graph(network, PARAMS, x)
    tx = nnopt.quantization.uniform(8)
    packed = tx.pack(PARAMS, tx.init(PARAMS))
    run = nnopt.on_packed(network)
    small = graph.shrink(PARAMS, {graph.coupled.names[0]: range(4)})
    cost = graph.cost(latency=True)
    names = ("input_absmax", "input_gram", "input_moments", "input_range", "output_moments")
    found = [
        graph,
        graph.traced,
        graph.uses,
        graph.axes,
        graph.coupled,
        graph.coupled.dimensions[0],
    ]
    found += [cost, cost.rows[0], cost.against(graph.cost()), run, run.report(packed, x)]
    found += [small, small.apply, graph.observe(PARAMS, [x], names)]
    return {type(value).__name__: value for value in found}


EXPECTED = {
    "Graph": "Graph(network, 12 leaves)",
    "Traced": "Traced(24 steps, 13 inputs)",
    "LeafUses": "LeafUses(12 uses of 12 leaves)",
    "AxesTable": "AxesTable(11 weights of 12 leaves, 0 unknown)",
    "CoupledAxes": "CoupledAxes(11 dimensions, 2 frozen axes)",
    "Cost": "Cost(50.7 k FLOPs, 12.3 k bytes of parameters, ",
    "CostRow": "CostRow('a_long_name_of_a_layer_0/kernel', 4.10 k FLOPs, 1.02 k bytes)",
    "CostComparison": "CostComparison(FLOPs 1.00x, bytes 1.00x)",
    "OnPacked": "OnPacked(network, strict=False)",
    "PackedReport": "PackedReport(12 uses, 0 materialized)",
    "ShrunkModel": "ShrunkModel(3,072 -> 2,688 parameters)",
    "SmallerFunction": "SmallerFunction(network, 2 leaves smaller)",
    "Observed": "Observed(1 batch, 12 leaves: input_absmax, input_gram, input_moments, input_",
    "Dimension": "Dimension('a_long_name_of_a_layer_0/kernel:1', 16 units on 2 axes)",
}


def test_every_kind_has_a_line(values):
    assert values.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_repr_is_one_short_line_without_arrays(values, name):
    text = repr(values[name])
    assert text.startswith(EXPECTED[name])
    assert len(text) <= 100
    assert "\n" not in text
    assert "rray(" not in text
    assert "99999" not in text


@pytest.mark.parametrize("name", sorted(EXPECTED.keys() - {"Traced", "CostRow", "OnPacked"}))
def test_pages_show_the_table(values, name):
    page, table = values[name]._repr_html_(), str(values[name])
    assert page == f"<pre>{html.escape(table)}</pre>"
    assert "99999" not in table


def test_markup_in_names_is_escaped():
    params = {"<b>w</b>": jnp.ones((2, 2))}
    graph = nnopt.graph(lambda p, x: x @ p["<b>w</b>"], params, jnp.ones(2))
    assert "&lt;b&gt;w" in graph._repr_html_()
    assert "<b>" not in graph._repr_html_()


@pytest.mark.parametrize(
    ("statistic", "text"),
    [
        (input_absmax(channel=True), "Statistic(input_absmax, channel=True)"),
        (input_gram(block=64), "Statistic(input_gram, block=64)"),
        (input_histogram(256), "Statistic(input_histogram, bins=256)"),
        (input_range(), "Statistic(input_range)"),
    ],
)
def test_statistics_show_their_settings(statistic, text):
    assert repr(statistic) == text
