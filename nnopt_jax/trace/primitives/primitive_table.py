"""The table of primitives, which describes each one once for every analysis."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Self

from jax.extend.core import Primitive

from nnopt_jax.errors import CompositionError
from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.contractions import CONTRACTIONS
from nnopt_jax.trace.primitives.draft import opaque_rule
from nnopt_jax.trace.primitives.elementwise import ELEMENTWISE, IDENTITIES
from nnopt_jax.trace.primitives.generators import GENERATORS, LINEAR_ALGEBRA
from nnopt_jax.trace.primitives.lookups import LOOKUPS
from nnopt_jax.trace.primitives.movements import MOVEMENTS
from nnopt_jax.trace.primitives.primitive_names import by_primitive
from nnopt_jax.trace.primitives.primitive_rule import MakeRule, OpRule
from nnopt_jax.trace.primitives.programs import PROGRAMS, MakePrograms, Programs
from nnopt_jax.trace.primitives.reductions import MESH_EXCHANGES, REDUCTIONS, WINDOWS


@dataclasses.dataclass(frozen=True)
class Table:
    """An immutable table of primitives: the rules of their equations, and their inner programs.

    Args:
        rules: maps a primitive to a function that makes the rule of an equation.
        programs: maps a primitive to a function that finds the programs of an equation.

    Example:
        Every analysis takes a table, so that a primitive of your own is described in one place.

        >>> import jax, jax.numpy as jnp
        >>> from jax.extend.core import Primitive
        >>> from nnopt_jax.trace.primitives import TABLE, elementwise_rule
        >>> swish_p = Primitive("swish")
        >>> mine = TABLE.with_rule(swish_p, elementwise_rule)
        >>> swish_p in mine, swish_p in TABLE
        (True, False)
    """

    rules: Mapping[Any, MakeRule]
    programs: Mapping[Any, MakePrograms]

    def __post_init__(self) -> None:
        # A frozen dataclass does not freeze its dictionaries.
        for name in ("rules", "programs"):
            object.__setattr__(self, name, types.MappingProxyType(dict(getattr(self, name))))

    def __contains__(self, primitive: Any) -> bool:
        return primitive in self.rules or primitive in self.programs

    def __len__(self) -> int:
        return len({*self.rules, *self.programs})

    def __repr__(self) -> str:
        return f"Table({len(self)} primitives)"

    def rule_of(self, equation: Equation) -> OpRule:
        """Return the rule of an equation, or an opaque rule if its primitive is unknown.

        Args:
            equation: one equation of a program.
        """
        return self.rules.get(equation.primitive, opaque_rule)(equation)

    def programs_of(self, equation: Equation) -> Programs | None:
        """Return the inner programs of an equation, or None if it contains no program.

        Args:
            equation: one equation of a program.
        """
        make = self.programs.get(equation.primitive)
        return None if make is None else make(equation)

    def with_rule(self, primitive: Any, make: MakeRule) -> Self:
        """Return a copy of the table with this rule for a primitive.

        Args:
            primitive: the primitive.
            make: a function `make(equation)` that returns the `OpRule`; `Draft` helps to write it.

        Raises:
            CompositionError: `primitive` is not a primitive, or `make` is not a function.
        """
        _check_entry("with_rule", primitive, make)
        return dataclasses.replace(self, rules={**self.rules, primitive: make})

    def with_programs(self, primitive: Any, make: MakePrograms) -> Self:
        """Return a copy of the table with an entry for the programs of a primitive.

        Args:
            primitive: the primitive.
            make: a function `make(equation)` that returns the `Programs`.
        """
        _check_entry("with_programs", primitive, make)
        return dataclasses.replace(self, programs={**self.programs, primitive: make})


def _check_entry(caller: str, primitive: Any, make: Any) -> None:
    """Raise if a new entry does not consist of a primitive and a function."""
    if not isinstance(primitive, Primitive) or not callable(make):
        given = f"{type(primitive).__name__} and {type(make).__name__}"
        raise CompositionError(
            f"TABLE.{caller}: takes a primitive and a function of an equation, and got {given}; "
            "give equation.primitive, or a jax.extend.core.Primitive of your own."
        )


_RULES = (
    ELEMENTWISE | IDENTITIES | MOVEMENTS | LOOKUPS | CONTRACTIONS | REDUCTIONS | WINDOWS
    | GENERATORS | LINEAR_ALGEBRA | MESH_EXCHANGES
)  # fmt: skip
TABLE = Table(by_primitive(_RULES), by_primitive(PROGRAMS))
"""The table of JAX's primitives."""


def rule_of(equation: Equation, table: Table = TABLE) -> OpRule:
    """Return the rule of an equation, or an opaque rule if its primitive is unknown.

    Args:
        equation: one equation of a program.
        table: the rules of the primitives.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nnopt_jax.trace.primitives import rule_of
        >>> turned = jax.make_jaxpr(jnp.transpose)(jnp.ones((2, 3))).jaxpr.eqns[0]
        >>> print(rule_of(turned))
        movement: (0, 1) -> (1, 0); sizes 2, 3
    """
    return table.rule_of(equation)


def programs_of(equation: Equation, table: Table = TABLE) -> Programs | None:
    """Return the inner programs of an equation, or None if it contains no program.

    Args:
        equation: one equation of a program.
        table: the rules of the primitives.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nnopt_jax.trace.primitives import programs_of
        >>> called = jax.make_jaxpr(jax.jit(jnp.sin))(jnp.ones(3)).jaxpr.eqns[0]
        >>> programs_of(called).body.inputs
        (0,)
    """
    return table.programs_of(equation)
