"""Programs: functions serialized by `jax.export`, which run without their source code."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax import export
from jax.extend.backend import backends

from nnopt_jax.errors import (
    ArtifactError,
    Problems,
    SelectionError,
    ShapeError,
    ValueRangeError,
)
from nnopt_jax.settings import Settings
from nnopt_jax.tree.paths import flatten

PLATFORMS = ("cpu", "cuda", "tpu")
_KNOWN = ("cpu", "cuda", "rocm", "tpu")
# A table instead of `eval`, because constraints may come from a file.
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


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A function serialized by `jax.export`, and deserialized at its first call.

    Args:
        data: the bytes.
        about: facts that are known without reading it: inputs, outputs, platforms, whether it is
            differentiable, and the version of jax that wrote it.
    """

    data: bytes
    about: dict[str, Any]

    @functools.cached_property
    def exported(self) -> export.Exported:
        """Return the deserialized program, which JAX can call.

        Raises:
            ArtifactError: this version of jax cannot read the program.
        """
        try:
            made = export.deserialize(bytearray(self.data))
            if self.about.get("jax") != jax.__version__:
                # Otherwise, a program that is too new would only fail when it is compiled.
                made.mlir_module()
            return made
        except Exception as error:  # flatbuffers and MLIR raise errors of any type
            raise ArtifactError(
                f"transfer.structure: jax {self.about.get('jax')} wrote the program, and jax "
                f"{jax.__version__} cannot read it ({error}). Capture it again from the code, or "
                "use it with the writer's version of jax, or one at most six months newer."
            ) from error

    def call(self, who: str, leaves: list[Any], args: tuple[Any, ...]) -> Any:
        """Run the program.

        Args:
            who: the caller, for errors.
            leaves: the parameters, in the order of the program.
            args: plain containers of arrays.

        Returns:
            Plain containers of arrays.

        Raises:
            SelectionError: the paths of inputs differ from those of the program.
            ShapeError: an input has another shape or dtype.
            ArtifactError: the program was written for other platforms, or cannot be read.
        """
        known, here = self.exported.platforms, [*backends()]
        if not {*known} & {*here}:
            raise ArtifactError(
                f"{who}: the program runs on {', '.join(known)}, and the backends here are "
                f"{', '.join(here)}; give capture(..., platforms=[...]) those."
            )
        avals = jax.tree.unflatten(self.exported.in_tree, self.exported.in_avals)
        sizes = _check_inputs(who, flatten(avals[0][1]), flatten(args))
        if lost := violated_constraints(self.about.get("constraints", ()), sizes):
            held = ", ".join(f"{name}={size}" for name, size in sizes.items())
            raise ShapeError(f"{who}: inputs of {held}, and {', '.join(lost)} must hold.")
        return self.exported.call(leaves, args)


def check_platforms(who: str, platforms: Any) -> None:
    """Raise if `platforms` is neither None nor a sequence of names that `jax.export` knows."""
    settings = Settings(who)
    if platforms is not None and (isinstance(platforms, str) or not platforms):
        settings.wrong("platforms", platforms, "is not a sequence of names; give e.g. ['cpu'].")
        platforms = None
    for platform in platforms or ():
        settings.choice("platforms", platform, _KNOWN)
    settings.done()


def serialize(
    function: Callable[..., Any],
    leaves: Sequence[Any],
    inputs: tuple[Any, ...],
    platforms: Sequence[str] | None,
    constraints: Sequence[str],
) -> Program:
    """Serialize a function as a program.

    Args:
        function: a function `(leaves, inputs) -> outputs` of plain containers.
        leaves: the shapes of the parameters.
        inputs: the shapes of the inputs; sizes may be symbolic.
        platforms: the platforms that it runs on; None for CPU, CUDA and TPU if it can be lowered
            for all, else that of this process.
        constraints: relations between symbolic sizes.

    Returns:
        The program, with a backward pass if JAX can derive one.

    Raises:
        ValueRangeError: the function does not use any leaf.
    """
    with no_source_paths():
        made = _exported(function, list(leaves), inputs, platforms)
        try:
            data, differentiable = made.serialize(vjp_order=1), True
        except Exception:  # loops of unknown length have no backward pass, and integers need none
            data, differentiable = made.serialize(), False
    if leaves and not any(index < len(leaves) for index in made.module_kept_var_idx):
        raise ValueRangeError(
            "transfer.capture: the function reads none of the parameters. It must take them by its "
            "first argument; what it closes over becomes part of the program."
        )
    ins, outs = (jax.tree.unflatten(tree, avals) for tree, avals in (
        (made.in_tree, made.in_avals), (made.out_tree, made.out_avals)
    ))  # fmt: skip
    about = {
        "inputs": {path: aval.str_short() for path, aval in flatten(ins[0][1]).items()},
        "outputs": {path: aval.str_short() for path, aval in flatten(outs).items()},
        "constraints": [str(text) for text in constraints],
        "platforms": list(made.platforms),
        "differentiable": differentiable,
        "jax": jax.__version__,
    }
    return Program(bytes(data), about)


def _exported(
    function: Callable[..., Any], leaves: list[Any], inputs: Any, platforms: Sequence[str] | None
) -> export.Exported:
    jitted = jax.jit(function)
    if platforms is not None:
        return export.export(jitted, platforms=platforms)(leaves, inputs)
    try:
        return export.export(jitted, platforms=PLATFORMS)(leaves, inputs)
    except Exception:  # the next line raises a fault of the function itself again
        return export.export(jitted)(leaves, inputs)


@contextlib.contextmanager
def no_source_paths() -> Iterator[None]:
    """Keep the file names of the caller out of serialized programs."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _check_inputs(who: str, wanted: dict[str, Any], given: dict[str, Any]) -> dict[str, int]:
    """Return the sizes of named dimensions; raise if inputs do not fit the program."""
    lost, misfit = Problems(who), Problems(who)
    for path in wanted.keys() - given.keys():
        lost.add(f"input {path}", f"is missing; the program wants {wanted[path].str_short()}")
    for path in given.keys() - wanted.keys():
        known = ", ".join(wanted) or "it has none"
        lost.add(f"input {path}", f"is not one of the program's: {known}")
    lost.found.sort()
    lost.raise_as(SelectionError)
    sizes: dict[str, Any] = {}
    for path, aval in wanted.items():
        leaf = given[path]
        said = f"is {jax.typeof(leaf).str_short()}, the program wants {aval.str_short()}"
        if leaf.ndim != aval.ndim or leaf.dtype != aval.dtype:
            misfit.add(f"input {path}", said)
            continue
        for have, want in zip(leaf.shape, aval.shape, strict=True):
            if isinstance(want, int) and have != want:
                misfit.add(f"input {path}", said)
                break
            # jax.export assumes that symbolic sizes are at least 1.
            if have < 1:
                misfit.add(f"input {path}", f"{said}, of 1 or more")
                break
            name = str(want)
            if name.isidentifier() and sizes.setdefault(name, have) != have:
                misfit.add(f"input {path}", f"{said}, with {name}={sizes[name]} elsewhere")
                break
    misfit.raise_as(ShapeError)
    return sizes


def violated_constraints(constraints: Sequence[str], sizes: Mapping[str, int]) -> list[str]:
    """Return the constraints that the sizes violate.

    Args:
        constraints: constraints in the syntax of `jax.export.symbolic_shape`, possibly from a file.
        sizes: the sizes by name; a constraint with other names is left to JAX.

    Returns:
        The constraints that do not hold.

    Example:
        >>> violated_constraints(["t <= 16", "mod(t, 2) == 1", "s >= 2*t"], {"t": 18})
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
