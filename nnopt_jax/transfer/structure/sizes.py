"""Free sizes of inputs: what they are called, and what must hold between them."""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping, Sequence

_OPERATIONS = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mult": operator.mul,
    "Eq": operator.eq,
    "GtE": operator.ge,
    "LtE": operator.le,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "max": max,
    "min": min,
}


def broken(constraints: Sequence[str], sizes: Mapping[str, int]) -> list[str]:
    """The constraints that sizes do not keep.

    Args:
        constraints: as `jax.export.symbolic_shape` reads them; perhaps not trusted.
        sizes: by name; a constraint that names others is left to JAX.

    Returns:
        Those that do not hold.

    Example:
        >>> broken(["t <= 16", "mod(t, 2) == 1", "s >= 2*t"], {"t": 18})
        ['t <= 16', 'mod(t, 2) == 1']
    """
    return [text for text in constraints if not _holds(text, sizes)]


def _holds(text: str, sizes: Mapping[str, int]) -> bool:
    try:
        return bool(_value(ast.parse(text, mode="eval").body, sizes))
    except (SyntaxError, LookupError, TypeError, AttributeError, ValueError, RecursionError):
        return True
    except ZeroDivisionError:
        return False


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            return sizes[name]
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, sizes)
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATIONS[type(op).__name__](_value(left, sizes), _value(right, sizes))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _OPERATIONS[type(op).__name__](_value(left, sizes), _value(right, sizes))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return _OPERATIONS[name](*(_value(arg, sizes) for arg in args))
    raise ValueError(ast.dump(node))
