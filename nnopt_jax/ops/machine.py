"""Tables of what pays, by machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

import jax


class Row(Protocol):
    """What a table holds for one kind of machine."""

    @property
    def backend(self) -> str:
        """JAX's platform."""
        ...

    @property
    def since(self) -> tuple[int, int]:
        """The first version of JAX that it holds for."""
        ...


RowType = TypeVar("RowType", bound=Row)


def row_of(
    table: Iterable[RowType],
    others: RowType,
    backend: str | None = None,
    version: tuple[int, ...] | None = None,
) -> RowType:
    """The row of a machine.

    Args:
        table: the newest version first.
        others: of machines that nobody has measured.
        backend: JAX's platform; None: the default one.
        version: of JAX; None: this one.

    Example:
        >>> from typing import NamedTuple
        >>> class One(NamedTuple):
        ...     backend: str
        ...     since: tuple[int, int]
        >>> row_of([One("cpu", (0, 12)), One("cpu", (0, 0))], One("", (0, 0)), "cpu", (0, 10, 2))
        One(backend='cpu', since=(0, 0))
    """
    backend, version = backend or jax.default_backend(), version or jax.__version_info__
    known = (row for row in table if row.backend == backend and version >= row.since)
    return next(known, others)
