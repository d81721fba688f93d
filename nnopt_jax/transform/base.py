"""The protocol of a transform, a value of three pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer

from nnopt_jax.arrays.nodes import Field, is_node, materialize
from nnopt_jax.arrays.storage import store
from nnopt_jax.columns import WIDTH, brief_fields, clipped, counted
from nnopt_jax.errors import NonFiniteError, Problems, ShapeError
from nnopt_jax.ops.axis_roles import Axes
from nnopt_jax.ops.eager import count_nonfinite
from nnopt_jax.transform.binding import UNBOUND, Binding, Build, Misfit, ModelGraph, binding_of
from nnopt_jax.transform.inert import is_inert, without_inert
from nnopt_jax.transform.notes import Notes
from nnopt_jax.tree.paths import flatten

Answer = TypeVar("Answer")

TOGETHER = "*"
"""The key of entries of a state that belong to all leaves together, in place of a path."""


class State(NamedTuple):
    """The state of one transform between steps: a pytree of arrays.

    Args:
        learned: float arrays that the optimizer moves, by leaf path, or `"*"` for all leaves
            together.
        rest: all other arrays (masks, scales, tables, keys), likewise; it names every leaf.
        count: int32, the number of updates.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transform import State
        >>> State(learned={}, rest={"w": jnp.ones(2, bool)}, count=jnp.int32(0)).count
        Array(0, dtype=int32)
    """

    learned: Any
    rest: Any
    count: jax.Array

    __repr__ = brief_fields


class Grads(NamedTuple):
    """The two gradients of a loss under a transform.

    Args:
        train: the gradient with respect to the arrays that the optimizer moves, a `Trainable`.
        dense: the gradient with respect to the dense parameters that the model used, with their
            structure.

    Example:
        >>> from nnopt_jax.transform import Grads
        >>> Grads(train=1, dense=2).dense
        2
    """

    train: Any
    dense: Any

    __repr__ = brief_fields

    @property
    def shown(self) -> Any:
        """Raise an error that names `dense`, the new name."""
        raise AttributeError("grads.shown is now grads.dense")


class InitFn(Protocol):
    """The type of `init(params, *, stats=None, graph=None, key=None) -> State`."""

    def __call__(
        self, params: Any, *, stats: Any = None, graph: Any = None, key: jax.Array | None = None
    ) -> Any:
        """Return the initial state, after all checks of selection, shapes and settings."""
        ...


class EncodeFn(Protocol):
    """The type of `encode(params, state, *, train=False) -> params`, with packed leaves."""

    def __call__(self, params: Any, state: Any, *, train: bool = False) -> Any:
        """Return the parameters with a packed parameter in place of each encoded leaf."""
        ...


class UpdateFn(Protocol):
    """The type of `update(params, state, *, grads, upstream, step) -> (params, state)`."""

    def __call__(
        self,
        params: Any,
        state: Any,
        *,
        grads: Grads | None = None,
        upstream: Any = None,
        step: jax.Array | int | None = None,
    ) -> tuple[Any, Any]:
        """Update the state, and perhaps move the parameters, after an optimizer step."""
        ...


@dataclasses.dataclass(frozen=True)
class Transform:
    r"""A transform of parameters: three pure functions, and functions derived from them.

    `encode` returns the packed parameter that stands for each leaf. The parameters of the model and
    those in storage form are derived from it, so they cannot disagree:

    $$ apply = materialize \circ encode, \qquad pack = store \circ encode $$

    Args:
        name: the name in errors and tables, such as `"pruning.magnitude"`.
        init: a function that makes the state from the parameters.
        encode: a function that returns the packed parameters that stand for the leaves.
        update: a function that updates the state once after each optimizer step.
        exact: whether `init` and `update` are bit-equal on any mesh.
        capacities: a function that returns the final number of values of each leaf, by path, as far
            as settings determine it; for `plan`.
        needs: the names of the statistics that `init` requires; `graph.observe` measures them.
        frozen: a function that returns the paths of the parameters that optimizers must not move.
        back: a function that maps gradients at the dense parameters to those for earlier
            transforms: a leaf that is used for several gets the sum of their gradients.
        check: a function that raises all errors of selection, axes and shapes, given the shapes of
            parameters.
        notes: a function that returns the notes of a plan on each leaf, by path, given the shapes
            of parameters.
        takes: the names of the statistics that `init` uses if they are available.
        binding: the model that it is bound to.
        build: a function that makes the same transform for another model.
        description: the call that made it, for `repr`; if empty, the name is used.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.pruning.magnitude(sparsity=0.5)
        >>> params = {"kernel": jnp.array([[1.0, -3.0], [2.0, 0.5]])}
        >>> state = tx.init(params)
        >>> tx.apply(params, state)["kernel"]
        Array([[ 0., -3.],
               [ 2.,  0.]], dtype=float32)
        >>> tx.pack(params, state)
        {'kernel': Sparse(values float32[2], support 1-bit[2,2], 18 bits/weight)}
    """

    name: str
    init: InitFn
    encode: EncodeFn
    update: UpdateFn
    exact: bool = True
    capacities: Callable[[Any], dict[str, int]] = lambda params: {}
    needs: tuple[str, ...] = ()
    frozen: Callable[[Any], frozenset[str]] = lambda params: frozenset()
    back: Callable[[Any], Any] = lambda slopes: slopes
    check: Callable[[Any], None] = lambda params: None
    notes: Callable[[Any], Notes] = lambda params: {}
    takes: tuple[str, ...] = ()
    binding: Binding = UNBOUND
    build: Build | None = None
    description: str = dataclasses.field(default="", compare=False)

    def bind(
        self,
        graph: ModelGraph | None = None,
        *,
        axes: Mapping[str, Axes] | None = None,
        misfit: Misfit = "raise",
    ) -> Transform:
        """Return the same transform with the axes of a model's weights.

        Channel scales then lie on output axes, and groups, N:M patterns and factors follow the
        contracted axes. By default, the transform then takes the weights of products and
        convolutions, except embeddings and the last product. Unbound, weights of two axes are `(in,
        out)`.

        Args:
            graph: the result of `nnopt.graph(apply, params, *inputs)`.
            axes: axes by rule (see `nnopt_jax.tree.selector`), for models without a graph or leaves
                whose uses disagree. A path takes precedence over patterns, and a later pattern over
                earlier ones.
            misfit: `"raise"`: leaves that groups or patterns do not fit raise an error. `"skip"`:
                they are not changed, and the plan says so.

        Raises:
            NnoptError: selection, axes or shapes are wrong; all problems of one kind are raised at
                once.

        Example:
            >>> import jax.numpy as jnp
            >>> import nnopt_jax as nnopt
            >>> params = {"weight": jnp.array([[1.0, 2.0], [8.0, 0.5]])}  # (out, in)
            >>> tx = nnopt.quantization.uniform(8, granularity="channel")
            >>> tx = tx.bind(axes={"weight": nnopt.Axes(in_axis=1, out_axis=0)})
            >>> tx.init(params).rest["weight"][0]["scale"].shape
            (2, 1)
        """
        if self.build is None:
            return self
        settings = binding_of(self.name, graph, axes, misfit)
        bound = self.build(settings)
        if graph is not None:
            abstractly(bound.check, graph.params)
        return bound

    def __repr__(self) -> str:
        """Return the call that made the transform, and the number of leaves it is bound to."""
        count = len(self.binding.axes) or len(self.binding.rules)
        end = f" bound to {counted(count, 'leaf', 'leaves')}" if self.binding.is_bound else ""
        return clipped(self.description or self.name, WIDTH - len(end)) + end

    def apply(self, params: Any, state: Any) -> Any:
        """Return the dense parameters that the model uses.

        Args:
            params: the parameters.
            state: the transform's state.
        """
        return materialize(self.encode(params, state))

    def pack(self, params: Any, state: Any, *, capacities: Mapping[str, int] | None = None) -> Any:
        """Return the parameters in storage form, which materialize to `apply` bit for bit.

        Args:
            params: the parameters.
            state: the transform's state.
            capacities: under `jax.jit`, the number of values that each masked leaf keeps, if it
                depends on data.

        Raises:
            NonFiniteError: a leaf that becomes codes holds NaN or infinity (not under `jax.jit`).
            CapacityError: see `capacities`.
            ShapeError: the state was made for parameters of other shapes.
        """
        encoded = self.encode(params, state)
        _check_encoded(f"{self.name}: pack", params, encoded)
        return store(encoded, capacities=capacities)


def bindable(build: Build, binding: Binding = UNBOUND) -> Transform:
    """Make a transform that can be bound to other models.

    Args:
        build: `build(binding) -> Transform`.
        binding: the initial binding.

    Example:
        >>> import nnopt_jax as nnopt
        >>> from nnopt_jax.transform.base import bindable
        >>> bindable(lambda binding: nnopt.quantization.uniform(8)).binding.is_bound
        False
    """

    def bound(binding: Binding) -> Transform:
        return dataclasses.replace(build(binding), binding=binding, build=bound)

    return bound(binding)


def _has_codes(field: Field) -> bool:
    if not is_node(field):
        return False
    return field.CODES or any(_has_codes(inner) for _, inner in field.fields())


def _check_encoded(who: str, params: Any, encoded: Any) -> None:
    """Raise if a state was made for other shapes, or if quantized weights hold NaN or infinity."""
    misfit, broken, raw = Problems(who), Problems(who), flatten(params, is_node)
    for path, leaf in flatten(encoded, is_node).items():
        if not is_inert(leaf) and leaf.shape != raw[path].shape:
            misfit.add(path, f"has shape {raw[path].shape}, and the state is of shape {leaf.shape}"
                             "; give the state that belongs to these parameters")  # fmt: skip
        floats = [
            array
            for array in jax.tree.leaves((raw[path], leaf) if _has_codes(leaf) else ())
            if jnp.issubdtype(array.dtype, jnp.floating) and not isinstance(array, Tracer)
        ]
        for array in floats:
            if count := count_nonfinite(array):
                broken.add(path, f"{count} of {array.size} values are NaN or infinite, codes hold "
                                 "none; see where training diverged")  # fmt: skip
                break
    misfit.raise_as(ShapeError)
    broken.raise_as(NonFiniteError)


def abstract_state(tx: Transform, params: Any) -> Any:
    """Return the shapes and dtypes of the state that `tx.init` makes, without computing it.

    Example:
        >>> import jax
        >>> import nnopt_jax as nnopt
        >>> shapes = {"kernel": jax.ShapeDtypeStruct((3, 2), "float32")}
        >>> abstract_state(nnopt.pruning.magnitude(0.5), shapes).rest["kernel"]["mask"]
        ShapeDtypeStruct(shape=(3, 2), dtype=bool)
    """
    # Nothing is computed, so any key and any statistics satisfy what `init` requires.
    return jax.eval_shape(
        lambda p: tx.init(p, stats={name: p for name in tx.needs}, key=jax.random.key(0)),
        without_inert(params),
    )


def abstractly(ask: Callable[[Any], Answer], params: Any) -> Answer:
    """Call a function on abstract parameters, without computing anything.

    Args:
        ask: a function of parameters, which are traced; its result must not contain arrays.
        params: the parameters, or their shapes.

    Example:
        >>> import jax
        >>> abstractly(lambda p: p["w"].astype(int).ndim, {"w": jax.ShapeDtypeStruct((2,), "int8")})
        1
    """
    found: list[Answer] = []
    jax.eval_shape(lambda p: found.append(ask(p)), without_inert(params))
    return found[0]
