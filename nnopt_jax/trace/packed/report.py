"""What became of the packed leaves of a program."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from nnopt_jax.columns import aligned


class Use(NamedTuple):
    """One meeting of a packed leaf and a primitive.

    Args:
        path: the leaf.
        primitive: what it met.
        form: the node, in a word.
        reason: why it was made dense there; empty where it stayed packed.
        bytes: of the dense array; 0 where it stayed packed.
        line: the user's line, where it is known.

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
    """Where packed leaves stay packed, and where they are made dense, and why.

    Args:
        uses: in the order of the program; the same use at the same line counts once.

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
        """The uses that made a leaf dense."""
        return tuple(use for use in self.uses if use.reason)

    def __str__(self) -> str:
        """The table."""
        cells = [("leaf", "form", "meets", "becomes", "why", "line", "bytes")]
        for use in self.uses:
            becomes = "dense" if use.reason else "packed"
            cells.append(
                (use.path, use.form, use.primitive, becomes, use.reason, use.line, f"{use.bytes:,}")
            )
        return "\n".join(aligned(cells, numbers=1))
