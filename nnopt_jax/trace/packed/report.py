"""The report on which steps keep leaves packed and which materialize them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from nnopt_jax.columns import aligned


class Use(NamedTuple):
    """One use of a packed leaf by a primitive.

    Args:
        path: the path of the leaf.
        primitive: the name of the primitive.
        form: the name of the node's class.
        reason: why the leaf was materialized there; empty if it stayed packed.
        bytes: the size of the materialized array; 0 if the leaf stayed packed.
        line: the user's line, if that is known.

    Example:
        >>> from nnopt_jax.trace import Use
        >>> Use("w", "fft", "Quantized", "no rule for fft", 48, "").bytes
        48
    """

    path: str
    primitive: str
    form: str
    reason: str
    bytes: int
    line: str


@dataclasses.dataclass(frozen=True)
class PackedReport:
    """The steps that keep leaves packed, and those that materialize them, with reasons.

    Args:
        uses: the uses in the order of the program; equal uses at the same line count once.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx, params = nnopt.quantization.uniform(8), {"w": jnp.ones((8, 4))}
        >>> packed = tx.pack(params, tx.init(params))
        >>> run = nnopt.on_packed(lambda params, x: x @ jnp.sin(params["w"]) + x @ params["w"])
        >>> print(run.report(packed, jnp.ones(8)))  # doctest: +ELLIPSIS
        leaf  form       meets        becomes  why ...
        w     Quantized  sin          packed ...
        w     Quantized  dot_general  dense    no product ...
        w     Quantized  dot_general  packed ...
    """

    uses: tuple[Use, ...]

    @property
    def dense(self) -> tuple[Use, ...]:
        """The uses that materialized a leaf."""
        return tuple(use for use in self.uses if use.reason)

    def __str__(self) -> str:
        """Return the table of uses."""
        cells = [("leaf", "form", "meets", "becomes", "why", "line", "bytes")]
        for use in self.uses:
            becomes = "dense" if use.reason else "packed"
            cells.append(
                (use.path, use.form, use.primitive, becomes, use.reason, use.line, f"{use.bytes:,}")
            )
        return "\n".join(aligned(cells, numbers=1))
