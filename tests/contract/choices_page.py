"""The tables of docs/choices.md: which pairs of choices have a meaning.

python -m tests.contract.choices_page        prints them
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from nnopt_jax.errors import ValueRangeError
from nnopt_jax.pruning import Regrow, by_score
from nnopt_jax.pruning.scores import SCORES
from nnopt_jax.quantization import on_grid
from nnopt_jax.quantization.grids import GRIDS
from nnopt_jax.quantization.ranges import RANGES
from nnopt_jax.quantization.rounding import ROUNDINGS

_VERB = (
    "(?:with pattern|is|does|has|can|belongs|gives|makes|goes|moves|divides|compares|counts)[ =]"
)


def constant(count: Any) -> float:
    """A schedule."""
    del count
    return 0.5


_PATTERNS: dict[str, dict[str, Any]] = {
    "single": {"sparsity": 0.5},
    "per output": {"sparsity": 0.5, "pattern": "per_output"},
    "2:4": {"pattern": "2:4"},
    "blocks": {"sparsity": 0.5, "pattern": (4, 4)},
    "coupled": {"sparsity": 0.5, "pattern": "coupled"},
}
_MORE: dict[str, dict[str, Any]] = {
    "`erk`": {"allocation": "erk"},
    "`global`": {"allocation": "global"},
    "`lamp`": {"allocation": "lamp"},
    "`flops`": {"allocation": "flops"},
    "schedule": {"sparsity": constant},
    "`Regrow`": {"mode": Regrow(), "allocation": "uniform"},
}


def cell(make: Callable[[], Any]) -> str:
    """Return "yes" where a combination has a meaning, else the error's reason."""
    try:
        make()
    except ValueRangeError as error:
        lines = str(error).split("\n")
        text = lines[1] if len(lines) > 1 else lines[0]
        return re.sub(r"^.*?(\w+)=", r"\1=", text.strip(), count=1)
    return "yes"


def table(head: str, rows: dict[str, Any], columns: dict[str, Any], make: Any) -> list[str]:
    """Return the lines of a table; reasons are numbered below it."""
    reasons: list[str] = []
    lines = ["| " + " | ".join([head, *columns]) + " |", "|" + "---|" * (1 + len(columns))]
    for row, left in rows.items():
        cells = []
        for right in columns.values():
            found = cell(lambda left=left, right=right: make(left, right))
            found = re.sub(r"the grid is [^;]*;", "the grid is a different one;", found)
            found = re.sub(r", and \S+\(.*\) would clip", ", and the grid would clip", found)
            found = re.sub(r"the (grid|range) \w+\([^;]*\) has", r"the \1 has", found)
            found = re.sub(r"in which \w+\(\) stores", "in which the grid stores", found)
            found = re.sub(r"apply to \w+\(\), whose", "apply to a grid whose", found)
            kind = re.sub(rf"=.*?( {_VERB})", r"\1", found)
            if found != "yes" and kind not in reasons:
                reasons.append(kind)
            cells.append("yes" if found == "yes" else f"no ({reasons.index(kind) + 1})")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return [*lines, "", *(f"{i}. `{reason}`" for i, reason in enumerate(reasons, 1)), ""]


def scored(score: str, choices: dict[str, Any]) -> Any:
    choices = dict(choices)
    return by_score(score, choices.pop("sparsity", 0.5 if "pattern" not in choices else None),
                    **choices)  # fmt: skip


def page() -> str:
    """Return all tables."""
    scores = {f"`{name}`": name for name in sorted(SCORES)}
    grids = {f"`{name}`": name for name in sorted(GRIDS)}
    ranges = {f"`{name}`": {"range": name} for name in sorted(RANGES)}
    scales = {
        **{f"`{name}`": {"rounding": name} for name in sorted(ROUNDINGS)},
        "`e8m0`": {"scale_dtype": "e8m0"},
        "`double`": {"double": True},
        "groups": {"group": 32},
        "channels": {"granularity": "channel"},
    }
    parts = [
        table("score", scores, _PATTERNS, scored),
        table("score", scores, _MORE, scored),
        table("pattern", _PATTERNS, _MORE, lambda a, b: scored("magnitude", {**a, **b})),
        table("grid", grids, ranges, lambda a, b: on_grid(a, **b)),
        table("grid", grids, scales, lambda a, b: on_grid(a, **b)),
        table("range", ranges, scales, lambda a, b: on_grid("ternary", **{**a, **b})),
    ]
    return "\n".join("\n".join(part) for part in parts)


if __name__ == "__main__":
    print(page())
