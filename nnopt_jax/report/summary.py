"""What a finished run has to tell, as plain data: tables, curves and leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Measure:
    """One line of the final table.

    Args:
        name: what is measured.
        unit: `"bytes"`, `"%"`, `"ms"` or `"bits"`.
        before: of the dense model; None where it was not measured.
        after: of the packed model.
        note: what one must know to read the numbers.
    """

    name: str
    unit: str
    before: float | None
    after: float | None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Latency:
    """Milliseconds of one call of a network.

    Args:
        dense: median of the calls on dense parameters.
        packed: median of those on packed ones.
        dense_least: the quickest.
        packed_least: likewise.
        ratio: dense time over packed time, the median of pairs: above 1 packed is the faster.
    """

    dense: float
    packed: float
    dense_least: float
    packed_least: float
    ratio: float


@dataclasses.dataclass(frozen=True)
class LeafRow:
    """One leaf of the packed model.

    Args:
        path: its name.
        expression: how it is stored, on one line.
        shape: logical shape.
        file_bytes: its streams in the file; None where they are not known one by one.
        memory_bits: its arrays in memory.
        zeros: how many of its values are zero.
        edges: borders of the bins of the histogram, one more than bins.
        counts: how many values that are not zero lie in each bin.
        call: what becomes of it inside a call: as `leaf_calls` tells; empty for arrays.
    """

    path: str
    expression: str
    shape: tuple[int, ...]
    file_bytes: int | None
    memory_bits: int
    zeros: int = 0
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    call: str = ""

    @property
    def size(self) -> int:
        """Number of parameters."""
        size = 1
        for length in self.shape:
            size *= length
        return size


@dataclasses.dataclass(frozen=True)
class Summary:
    """All that the final table and the HTML report show.

    Args:
        title: name of the run.
        measures: the final table.
        leaves: one row for each leaf.
        rows: the rows of `metrics.jsonl`.
        recipe: the resolved recipe, as YAML.
        notes: remarks under the table.

    Example:
        >>> from nnopt_jax.report import Measure, Summary
        >>> small = Summary("demo", (Measure("file", "bytes", 400, 20),), (), (), "", ())
        >>> Summary.from_json(small.to_json()) == small
        True
    """

    title: str
    measures: tuple[Measure, ...]
    leaves: tuple[LeafRow, ...]
    rows: tuple[Mapping[str, Any], ...]
    recipe: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Dictionaries and lists that `json.dumps` takes."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Summary:
        """Undoes `to_json`, also after a round through JSON."""
        return cls(
            title=data["title"],
            measures=tuple(Measure(**item) for item in data["measures"]),
            leaves=tuple(LeafRow(**_tuples(item)) for item in data["leaves"]),
            rows=tuple(data["rows"]),
            recipe=data["recipe"],
            notes=tuple(data["notes"]),
        )


def _tuples(item: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, Sequence) and not isinstance(v, str) else v
            for k, v in item.items()}  # fmt: skip


def amount(value: float | None, unit: str) -> str:
    """A number and its unit, to three or four figures.

    Example:
        >>> from nnopt_jax.report import amount
        >>> amount(9_431, "bytes"), amount(1.4, "%"), amount(0.1234, "ms"), amount(None, "bits")
        ('9,431', '1.40 %', '0.123 ms', '-')
    """
    if value is None:
        return "-"
    if unit == "bytes":
        return f"{value:,.0f}"
    text = f"{value:.2f}" if unit == "%" else f"{value:.3g}"
    return f"{text} {unit}"
