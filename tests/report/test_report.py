from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from nnopt_jax.arrays import Masked
from nnopt_jax.errors import RecipeError
from nnopt_jax.recipe.run_folder import JsonLines, read_rows, write_atomically
from nnopt_jax.report import (
    LeafRow,
    Measure,
    Result,
    call_note,
    compare,
    leaf_calls,
    leaf_rows,
    page,
)
from nnopt_jax.report.svg import Band, Line, bar_chart, histogram, line_chart, ticks
from nnopt_jax.trace import PackedReport, Use

RESULT = Result(
    title="a <b> & c",
    measures=(
        Measure("test error", "%", 3.0, 2.5, "read from the file"),
        Measure("on disk", "bytes", 4000, 100, "40.0x smaller"),
        Measure("step", "ms", None, 1.5),
    ),
    leaves=(
        LeafRow("a/<kernel>", "Sparse(...)", (4, 5), 70, 800, 10, (-1.0, 0.0, 1.0), (4, 6),
                "Sparse: no <rule>"),
        LeafRow("a/bias", "float32[5]", (5,), 30, 160, 5),
    ),
    rows=(
        {"step": 10, "stage": "train", "epoch": 1, "loss": 1.0, "sparsity": 0.0},
        {"step": 20, "stage": "prune", "epoch": 1, "loss": 0.5, "sparsity": 0.5,
         "valid_error": 0.1, "test_error": 0.2},
    ),
    recipe="name: <demo>\n",
    notes=("a note & more",),
)  # fmt: skip


class Tags(HTMLParser):
    """Checks that tags nest."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing():
    text = page(RESULT)
    tags = Tags(text)
    assert tags.open == []
    names = {name for name, _ in tags.seen}
    assert not names & {"script", "link", "img", "iframe", "object"}
    assert not any({"src", "href"} & attrs.keys() for _, attrs in tags.seen)
    assert "url(" not in text
    assert "@import" not in text
    assert "<title>a &lt;b&gt; &amp; c</title>" in text
    assert "&lt;kernel&gt;" in text
    assert "<kernel>" not in text


def test_the_page_is_a_pure_function():
    again = Result.from_json(json.loads(json.dumps(RESULT.to_json())))
    assert again == RESULT
    assert page(again) == page(RESULT)


def test_the_page_tells_what_a_call_makes_dense():
    text = page(RESULT)
    assert "<th>in a call</th>" in text
    assert "<td>Sparse: no &lt;rule&gt;</td>" in text


def test_results_of_earlier_versions_are_read():
    data = json.loads(json.dumps(RESULT.to_json()))
    for leaf in data["leaves"]:
        del leaf["call"]
    assert [leaf.call for leaf in Result.from_json(data).leaves] == ["", ""]


def test_calls_are_told_leaf_by_leaf_and_in_one_line():
    uses = (
        Use("tied", "gather", "Quantized", "", 0, ""),
        Use("tied", "dot_general", "Quantized", "its scales differ", 8, ""),
        Use("tied", "add", "Quantized", "no rule for add", 8, ""),
        Use("kernel", "dot_general", "Quantized", "", 0, ""),
        Use("k", "concatenate", "Quantized", "", 0, ""),
        Use("k and v", "add", "Quantized", "no rule for add", 8, ""),
        Use("argument 2/mean", "sub", "Quantized", "no rule for sub", 8, ""),
    )
    node = Masked(jnp.ones(2), jnp.ones(2, bool))
    tree = {"tied": node, "kernel": node, "unread": node, "k": node, "v": node, "bias": jnp.ones(2)}
    calls = leaf_calls(tree, PackedReport(uses))
    assert calls == {
        "kernel": "packed", "tied": "Quantized: its scales differ", "unread": "not read",
        "k": "Quantized: no rule for add", "v": "Quantized: no rule for add",
    }  # fmt: skip
    assert call_note(calls) == (
        "3 of 5 packed leaves are materialized inside the call: 2 Quantized (no rule for add), "
        "1 Quantized (its scales differ)."
    )


def test_an_empty_run_has_a_page():
    assert Tags(page(Result("x", (), (), (), "", ()))).open == []


def svg_of(figure):
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", figure)[0])


points = st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=8)


@given(points, st.booleans())
@example([(0.0, 5e-324)], True)
@example([(0.0, 5e-324)], False)
@example([(0.0, -616.0), (0.0, -458.0)], False)
def test_charts_are_xml_and_stay_inside(points, log):
    bands = [Band("a & b", 0.0, 1e6)]
    drawn = svg_of(line_chart("x < y", [Line("a", sorted(points), "red")], bands, log=log))
    for curve in drawn.iter("polyline"):
        for pair in curve.get("points").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= 640
            assert -1 <= y <= 241


def test_a_line_lies_where_its_values_do():
    drawn = svg_of(line_chart("x", [Line("a", [(0, 0), (5, 5), (10, 10)], "red")]))
    pairs = [tuple(map(float, p.split(","))) for p in drawn.find("polyline").get("points").split()]
    (x0, y0), (x1, y1), (x2, y2) = pairs
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y2


def test_bars_are_as_long_as_their_values():
    drawn = svg_of(bar_chart("x", ["a", "b"], [Line("s", [(0, 10), (0, 40)], "red")]))
    short, long = (float(bar.get("width")) for bar in drawn.iter("rect"))
    assert long == pytest.approx(4 * short, rel=0.01)


def test_nothing_is_drawn_of_nothing():
    assert line_chart("x", [Line("a", [], "red")]) == ""
    assert histogram("x", "", (0.0, 1.0), (0,)) == ""


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_round_and_inside(low, span):
    marks = ticks(low, low + span)
    assert 1 <= len(marks) <= 12
    assert all(low - span * 1e-6 <= mark <= low + span * (1 + 1e-6) for mark in marks)


def test_leaf_rows_count_what_is_there():
    leaf = Masked(jnp.array([1.0, 2.0, -3.0, 4.0]), jnp.array([True, False, True, True]))
    (row,) = leaf_rows({"w": leaf}, {"w": 9})
    assert (row.zeros, row.file_bytes, row.size, sum(row.counts)) == (1, 9, 4, 3)
    assert row.edges[0] == -3.0
    assert row.edges[-1] == 4.0


def test_compare_tells_what_is_apart():
    left = {"a": jnp.zeros(2), "b": jnp.ones(2), "c": jnp.ones(2)}
    right = {"a": jnp.zeros(2), "b": jnp.array([1.0, 3.5]), "d": jnp.ones(2)}
    apart = {path: distance for path, _, _, distance in compare(left, right)}
    assert apart == {"a": 0.0, "b": 2.5, "c": None, "d": None}
    assert compare({"a": jnp.zeros(2)}, {"a": jnp.zeros(3)})[0][3] is None


def test_rows_after_a_step_are_written_again(tmp_path):
    path = tmp_path / "m.jsonl"
    lines = JsonLines(path, upto=0)
    for step in range(1, 5):
        lines.append({"step": step})
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # killed here
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4]
    again = JsonLines(path, upto=2)
    again.append({"step": 3})
    assert read_rows(path) == [{"step": 1}, {"step": 2}, {"step": 3}] == again.rows


def test_an_old_file_stays_where_a_new_one_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomically(path, "old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RecipeError, match=r"cannot write .*a\.txt: No space left on device"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_histograms_leave_out_what_is_not_finite():
    (row,) = leaf_rows({"w": jnp.array([np.nan, np.inf, 1.0, 0.0])})
    assert sum(row.counts) == 1
