"""The structure of a model: programs, the tree of parameters, and initializers."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from nnopt_jax.arrays import abstract, is_node
from nnopt_jax.arrays.nodes import materialize, summary
from nnopt_jax.artifact.description import plain
from nnopt_jax.columns import aligned
from nnopt_jax.errors import (
    ArtifactError,
    Problems,
    SelectionError,
    ShapeError,
    ValueRangeError,
    nearest,
)
from nnopt_jax.settings import Settings
from nnopt_jax.transfer.structure.encoding import decode_structure, encode_structure
from nnopt_jax.transfer.structure.initial import Initializer, draw_leaf, initializer_text, leaf_key
from nnopt_jax.transfer.structure.program import Program
from nnopt_jax.transform.validation import check_key
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.typing import Key, Params

DEFAULT_MAX_BYTES = 1 << 30
"""The default limit on the bytes of programs: 1 GiB."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Structure:
    """The structure of a model, made by `capture`: programs, parameter shapes and initializers.

    Args:
        description: the tree of dense parameters, as `nnopt_jax.arrays.describe` returns it.
        starts: the initializer of each leaf by path, in the order of the programs.
        programs: `"apply"`, and `"train"` if training differs.
        constructor: `{"target": "package.module:callable", "config": {...}}`, or None.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"kernel": jnp.ones((3, 2))}
        >>> structure = nnopt.transfer.capture(
        ...     lambda params, x: x @ params["kernel"], params, jnp.ones((1, 3)), shapes=["b, ..."]
        ... )
        >>> again = nnopt.transfer.Structure.from_bytes(structure.to_bytes())
        >>> again.apply(params, jnp.ones((4, 3))).shape
        (4, 2)
        >>> print(again)
        kernel  float32[3,2]                  ones
        total   6 parameters
        apply   float32[b,3] -> float32[b,2]  cpu, cuda, tpu; differentiates
    """

    description: Any
    starts: dict[str, Initializer]
    programs: dict[str, Program]
    constructor: dict[str, Any] | None = None

    @property
    def parameters(self) -> Params:
        """The tree of parameters, with `jax.ShapeDtypeStruct` for arrays."""
        return abstract(self.description)

    def apply(self, params: Params, *args: Any) -> Any:
        """Compute the outputs of the model.

        This is a pure function: `jax.jit` compiles it for the devices of the parameters and inputs,
        and `jax.grad` differentiates it once. Second derivatives, forward mode and `jax.vmap` are
        not supported; the program has its own batch axis.

        Args:
            params: dense or packed parameters, in the containers of the source or in plain ones.
            *args: the arguments of the source.

        Returns:
            The outputs of the source, in dictionaries, lists and tuples.

        Raises:
            SelectionError: leaves of the parameters or inputs are missing or superfluous.
            ShapeError: their shapes or dtypes differ; all are named.
            ArtifactError: this version of jax cannot read the program.
        """
        return self._run("apply", params, args)

    def train(self, params: Params, *args: Any) -> Any:
        """Compute the outputs of the model in training; see `apply` for errors.

        Args:
            params: see `apply`.
            *args: the arguments of `apply`, then the `train_args` of `capture`.

        Raises:
            SelectionError: the structure does not have this program.
        """
        return self._run("train", params, args)

    def _run(self, name: str, params: Params, args: tuple[Any, ...]) -> Any:
        who = f"Structure.{name}"
        if name not in self.programs:
            raise SelectionError(f"{who}: there is none; give capture(..., {name}=function).")
        leaves = self.check(params, who)
        inputs = jax.tree.map(jnp.asarray, plain(args))
        return self.programs[name].call(
            who, [materialize(leaves[path]) for path in self.starts], inputs
        )

    def check(self, params: Params, who: str = "Structure.check") -> dict[str, Any]:
        """Check that parameters fit the structure, and return their leaves by path.

        Args:
            params: dense, packed or abstract parameters.
            who: the caller, for errors.

        Returns:
            The leaves by path.

        Raises:
            SelectionError: leaves are missing or superfluous; all are named.
            ShapeError: shapes or dtypes differ; all are named.
        """
        wanted, given = flatten(self.parameters), flatten(params, is_node)
        lost, misfit = Problems(who), Problems(who)
        for path in sorted(wanted.keys() - given.keys()):
            lost.add(path, f"is missing from the parameters.{nearest(path, given)}")
        for path in sorted(given.keys() - wanted.keys()):
            lost.add(path, f"is not a parameter of the structure.{nearest(path, wanted)}")
        lost.raise_as(SelectionError)
        for path, like in wanted.items():
            leaf = given[path] if hasattr(given[path], "dtype") else jnp.asarray(given[path])
            if (tuple(leaf.shape), leaf.dtype) != (like.shape, like.dtype):
                misfit.add(path, f"is {summary(leaf)}, the structure wants {summary(like)}")
            given[path] = leaf
        misfit.raise_as(ShapeError)
        return given

    def initialize(self, key: Key) -> Params:
        """Draw new parameters from the initializers of the leaves.

        Args:
            key: a typed key, from which each leaf gets its own by its path.

        Returns:
            The parameters, in plain containers.

        Raises:
            ValueRangeError: `key` is not a key; or leaves lack initializers, because `capture`
                could not measure them (all are named).
        """
        check_key("Structure.initialize", key)
        problems = Problems("Structure.initialize")
        for path, start in self.starts.items():
            if start["name"] == "unknown":
                problems.add(path, "was not measured; give capture(..., initializers={...}) one.")
        problems.raise_as(ValueRangeError)
        tree = self.parameters
        made = {
            path: draw_leaf(leaf_key(key, path), self.starts[path], like)
            for path, like in flatten(tree).items()
        }
        return unflatten(tree, made)

    def construct(self) -> Any:
        """Import the constructor of the model and call it.

        Returns:
            The result of the constructor.

        Raises:
            SelectionError: there is no constructor, or it cannot be imported here.
        """
        if self.constructor is None:
            _no("there is none; give capture(..., constructor='package.module:callable').")
        target, config = self.constructor["target"], self.constructor["config"]
        module, _, names = target.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for name in names.split("."):
                found = getattr(found, name)
        except (ImportError, AttributeError) as error:
            _no(f"{target} cannot be imported here ({error}); apply() needs no code.")
        return found(**config)

    def describe(self) -> dict[str, Any]:
        """Return everything except the bytes of the programs, as JSON."""
        return {
            "parameters": self.description,
            "starts": [[path, start] for path, start in self.starts.items()],
            "programs": {name: program.about for name, program in self.programs.items()},
            "constructor": self.constructor,
        }

    def to_bytes(self) -> bytes:
        """Return the structure as compressed bytes, with a version and a checksum."""
        return encode_structure(
            self.describe(), [program.data for program in self.programs.values()]
        )

    @staticmethod
    def from_bytes(data: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Structure:
        """Restore a structure from `to_bytes`, without importing or running anything.

        Args:
            data: the bytes.
            max_bytes: the greatest number of decompressed bytes.

        Raises:
            ArtifactError: the data is not a structure, has another version, is damaged, or is too
                large.
        """
        settings = Settings("Structure.from_bytes")
        settings.integer("max_bytes", max_bytes, 0)
        if not isinstance(data, bytes | bytearray | memoryview):
            settings.wrong("data", data, "is not bytes; give what to_bytes() returned.")
        settings.done()
        head, programs = decode_structure(bytes(data), max_bytes)
        try:
            described = zip(head["programs"].items(), programs, strict=True)
            made = Structure(
                description=head["parameters"],
                starts=dict(head["starts"]),
                programs={name: Program(data, about) for (name, about), data in described},
                constructor=head["constructor"],
            )
            if flatten(made.parameters).keys() != made.starts.keys():
                raise ValueError("paths differ")
            repr(made)  # reads every entry
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"Structure.from_bytes: malformed ({error!r}).") from error
        return made

    def __repr__(self) -> str:
        """Return a table of leaves, programs and the constructor."""
        leaves = flatten(self.parameters)
        rows = [
            (path, summary(leaf), initializer_text(self.starts[path]))
            for path, leaf in leaves.items()
        ]
        size = sum(math.prod(leaf.shape) for leaf in leaves.values())
        rows.append(("total", f"{size:,} parameters", ""))
        for name, program in self.programs.items():
            about = program.about
            backward = "; differentiates" if about["differentiable"] else ""
            signature = f"{_signature(about['inputs'])} -> {_signature(about['outputs'])}"
            rows.append((name, signature, ", ".join(about["platforms"]) + backward))
        if self.constructor is not None:
            config = ", ".join(f"{k}={v!r}" for k, v in self.constructor["config"].items())
            rows.append(("made by", f"{self.constructor['target']}({config})", ""))
        return "\n".join(aligned(rows))


def _signature(leaves: Mapping[str, str]) -> str:
    """Return inputs or outputs as a line of text, such as `x float32[b,3]`."""
    named = [
        text if path.isdigit() or not path else f"{path} {text}" for path, text in leaves.items()
    ]
    more = [f"and {len(named) - 3} more"] if len(named) > 3 else []
    return ", ".join(named[:3] + more) or "nothing"


def _no(text: str) -> NoReturn:
    raise SelectionError(f"Structure.construct: {text}")
