"""What the registry says of one method."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Entry:
    """A registered method; nothing is imported before `load`.

    Args:
        source: `"module:attribute"`.
        kind: `"wrap"`: stands around a leaf and sees its dense value; `"refine"`: replaces the
            float slots inside it.
        cases: keyword arguments the contract suite runs the method with.
        quantizes: whether it puts values on a grid, which can be done once only.
        straight_through: whether gradients pass as if it were not there, save where a mask or
            the end of a grid stops them; otherwise its own tests check them.
        trains_as_stored: whether training sees what is stored; stochastic and soft methods
            differ on purpose. Or `case -> whether`, where settings decide.
        shows_zeros: whether weights of zero are shown as zeros; signs are not.
        comes_first: whether it refuses what another method has refined already.
        replaces: leaves that the cases replace by others, so that earlier links must leave them
            out.

    Example:
        >>> from nnopt_jax import registry
        >>> registry.get("pruning.magnitude").load()(0.5).name
        'pruning.magnitude'
    """

    source: str
    kind: Literal["wrap", "refine"]
    cases: tuple[Mapping[str, Any], ...]
    quantizes: bool = False
    straight_through: bool = True
    trains_as_stored: bool | Callable[[Mapping[str, Any]], bool] = True
    shows_zeros: bool = True
    comes_first: bool = False
    replaces: tuple[str, ...] = ()

    def load(self) -> Callable[..., Any]:
        """Imports the method: a function of settings that returns a `Transform`."""
        module, _, attribute = self.source.partition(":")
        return getattr(importlib.import_module(module), attribute)
