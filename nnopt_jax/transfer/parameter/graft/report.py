"""What a graft did, leaf by leaf."""

from __future__ import annotations

import dataclasses
from typing import Any

from nnopt_jax.columns import Tabular


@dataclasses.dataclass(frozen=True, repr=False)
class GraftReport(Tabular):
    """What became of every leaf.

    Args:
        copied: paths of the target whose leaves came as they were, but for the dtype.
        adapted: what was done to the others that came, by path.
        kept: paths of the target that stayed, by a rule or because the source has none.
        unused: paths of the source, after all renames, that went nowhere; a path that is kept as
            well is one of both.
        failed: what was wrong, by path; paths of the target among them stayed.
        dead_rules: rules that met no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> source = {"a": jnp.ones(2), "b": jnp.ones(1)}
        >>> print(nnopt.transfer.graft({"a": jnp.zeros(2)}, source, strict=False).report)
        copied   1  a
        unused   1  b
    """

    copied: tuple[str, ...] = ()
    adapted: dict[str, str] = dataclasses.field(default_factory=dict)
    kept: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    dead_rules: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        found = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return ", ".join(f"{len(paths)} {name}" for name, paths in found if paths)

    def to_json(self) -> dict[str, Any]:
        """The report as dictionaries and lists."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """One line for each kind of leaf there is, some paths of it."""
        lines = []
        for field in dataclasses.fields(self):
            found = getattr(self, field.name)
            if not found:
                continue
            said = [f"{path}: {text}" for path, text in found.items()] if isinstance(
                found, dict
            ) else list(found)  # fmt: skip
            more = f", and {len(said) - 8} more" if len(said) > 8 else ""
            lines.append(f"{field.name:8} {len(said)}  {', '.join(said[:8])}{more}")
        return "\n".join(lines)
