"""The graph of a model: every analysis of how its function uses each parameter."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nnopt_jax.columns import Tabular, aligned, counted, listed
from nnopt_jax.errors import CompositionError, Problems
from nnopt_jax.trace.axis_analysis import axes_of
from nnopt_jax.trace.cost_count import count_cost
from nnopt_jax.trace.cost_table import Cost
from nnopt_jax.trace.coupling.axis_coupling import CoupledAxes, Keep, check_leaves, coupled_axes
from nnopt_jax.trace.coupling.rearrange import ShrunkModel, mask_units, permute_units, shrink
from nnopt_jax.trace.primitives import TABLE, Table
from nnopt_jax.trace.statistics.batch_reader import Progress, observe
from nnopt_jax.trace.statistics.observed import Observed
from nnopt_jax.trace.statistics.statistic import Names
from nnopt_jax.trace.statistics.use_sites import LeafUses, uses_of
from nnopt_jax.trace.traced import (
    Outputs,
    Traced,
    arrays_of,
    check_function,
    everything,
    name_of,
    shapes_of,
    trace,
)
from nnopt_jax.transform.binding import AxesTable
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import Params


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Graph(Tabular):
    """A function of parameters, traced once, with every analysis as a property or method.

    Args:
        apply: the function.
        traced: its program, and the shapes of its inputs.
        params: its parameters, with shapes in place of arrays.
        args: its further arguments, with shapes in place of arrays.
        kwargs: its keyword arguments, with shapes in place of arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> graph = nnopt.graph(lambda p, x: x @ p["w"].T, {"w": jnp.ones((4, 8))}, jnp.ones(8))
        >>> print(graph)
        leaf  shape  used by           contracted  output  batch  coupled
        w     4,8    dot_general       1           0       -      -
    """

    apply: Callable[..., Any]
    traced: Traced
    params: Params
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        return f"{name_of(self.apply)}, {counted(len(arrays_of(self.params)), 'leaf', 'leaves')}"

    @functools.cached_property
    def uses(self) -> LeafUses:
        """The steps that use each float leaf, and the axes of the leaf that each step contracts."""
        return uses_of(self.traced, self.params)

    @functools.cached_property
    def axes(self) -> AxesTable:
        """The contracted, output and batch axes of each weight."""
        return axes_of(self.traced)

    @functools.cached_property
    def coupled(self) -> CoupledAxes:
        """The dependency graph of axes that change together, with the reasons for frozen axes."""
        return coupled_axes(self.traced)

    def cost(self, params: Params | None = None, *, latency: bool = False) -> Cost:
        """Count the cost of a call for each leaf: FLOPs, bytes, and optionally milliseconds.

        Each step is attributed to one leaf: a product to the leaf that is contracted, even after
        the leaf was transposed, reshaped, cast, cut or unpacked. A product of two leaves is
        attributed to the larger one. Products of activations and steps that are not contractions
        have rows of their own.

        - A contraction costs two FLOPs for each product that it sums, `2 m k n` for a matrix
          product; a convolution has one product for each position, tap and pair of features.
          Padding counts (as in papers, unlike XLA); the holes of a transposed convolution do not.
        - Any other step costs one FLOP or one transcendental for each entry of its outcome. A
          reduction of `n` entries costs `n - 1`; movements and lookups cost nothing, as XLA counts
          before it simplifies. Dead steps do not count; a step that occurs twice counts twice.
        - A scan costs its body times its length. A `while` counts its body once, and a `cond` its
          most expensive branch; the notes of the result list these, and steps without a count.
        - Packed parameters cost the steps that `nnopt.on_packed` runs for them: two thin products
        for factors, integer products where it uses them, and unpacking.

        Args:
            params: arrays, shapes or packed leaves to count; None for the graph's own.
            latency: whether to compile and time a call, on zeros of the graph's shapes.

        Returns:
            The `Cost`: `print` it, or compare two by `before.against(after)`.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> import nnopt_jax as nnopt
            >>> shape = jax.ShapeDtypeStruct
            >>> params = {"down": shape((64, 8), "float32"), "up": shape((8, 64), "bfloat16")}
            >>> apply = lambda p, x: x @ p["down"] @ p["up"]
            >>> cost = nnopt.graph(apply, params, shape((2, 64), "float32")).cost()
            >>> for row in cost.rows:
            ...     print(row.path, row.parameters, row.bytes, row.macs, row.flops)
            down 512 2048 1024 2048
            up 512 1024 1024 2048
        """
        given = self.traced if params is None else self._with(params, "graph.cost")
        return count_cost(given, latency=latency)

    def observe(
        self, params: Params, batches: Iterable[Any], names: Names = ("input_absmax",), *,
        where: Where = "**", progress: Progress | None = None, strict: bool = False,
    ) -> Observed:  # fmt: skip
        r"""Run the function on batches and measure the inputs and outputs of each weight.

        Every use of a leaf is found in the program: products, convolutions and lookups, also after
        the leaf was transposed, reshaped, cast, cut or scaled by a number, and also inside `jit`,
        `vmap`, `remat`, `scan`, `cond`, `while_loop` and functions with custom derivative rules.
        Scanned leaves have entries for each of their layers; a leaf that a scan uses in every
        iteration sums over the iterations. A branch that is not taken adds nothing. Under
        `jax.vmap`, both branches of a `cond` are computed and count.

        Args:
            params: the parameters; packed leaves are materialized for the run.
            batches: any iterable of batches. A batch is the tuple of arguments after `params`;
                anything else is taken as a tuple of one. Batches are used one at a time, may be
                sharded over a mesh, and the last may be smaller.
            names: the statistics to measure, of `"input_absmax"`, `"input_range"`,
                `"input_moments"`, `"input_histogram"`, `"input_gram"`, `"input_count"`,
                `"output_moments"` and, of a loss, means over batches of `"gradient"`, `"fisher"`
                and `"hessian_gradient"`. Functions of these names in `nnopt_jax.trace` take
                settings. `tx.needs` lists what a transform needs.
            where: which leaves to measure.
            progress: a function `progress(done, total)` to call after each batch; `total` is None
                if `len(batches)` is unknown.
            strict: whether to raise if a statistic of a chosen leaf could not be measured.

        Returns:
            The statistics: `seen[name][path]`, for `tx.init(params, stats=seen)`, and those of each
            use in `seen.by_use`.

        Raises:
            StatisticsError: there are no batches; a derivative is requested and the function is not
                a loss; or, with `strict`, a statistic could not be measured.
            SelectionError: a statistic is unknown, or the rule selects no float leaf.
            ShapeError: parameters have other shapes than in the graph; or a block of `input_gram`
                does not divide the number of contracted entries.
            CompositionError: `batches` is an array, or does not fit the function.

        Example:
            >>> import jax.numpy as jnp
            >>> import nnopt_jax as nnopt
            >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
            >>> batches = [jnp.array([[1.0, -4.0]]), jnp.array([[2.0, 0.0]])]
            >>> graph = nnopt.graph(lambda p, x: x @ p["w"] + p["b"][None], params, batches[0])
            >>> seen = graph.observe(params, batches, ("input_absmax", "input_gram"))
            >>> print(seen["input_absmax"]["w"])
            4.0
            >>> print(seen["input_gram"]["w"])
            [[ 5. -4.]
             [-4. 16.]]

        References:
            Frantar et al. 2022, GPTQ (`X^T X`); Chan et al. 1983 (moments); Kirkpatrick et al.
            2017, section 2 (the diagonal of the Fisher information); Pearlmutter 1994 (`H g`).
        """
        self._check(params, "graph.observe")
        self._check_keywords()

        def on_batch(params: Params, batch: Any) -> Any:
            return self._on_batch(params, batch)

        on_batch.__name__ = name_of(self.apply)  # errors name the user's function
        table = self.traced.table
        return observe(on_batch, params, batches, names, where, progress, strict, table)

    def shrink(self, params: Params, keep: Keep) -> ShrunkModel:
        """Remove units, such as channels, from the parameters and from the function.

        The smaller function returns the same as the model with zeros in place of the removed units,
        `apply(graph.mask(params, keep), ...)`, up to the order of sums. A call with new shapes
        traces it again at the original widths, and computes each step at the smaller ones; the
        model is not rebuilt. It supports gradients, `jit`, `vmap`, `jax.checkpoint` and
        `jax.export`, and keeps custom derivative rules.

        Args:
            params: arrays, of the graph's shapes.
            keep: the units to keep, by the name of a dimension of `graph.coupled`: a boolean array
                (units,), or integer unit numbers; dimensions that are not named keep all units.

        Returns:
            The `ShrunkModel`: `.params`, `.apply`, and `.widths` by path.

        Raises:
            SelectionError: a dimension or a leaf is not known; the message lists all.
            ShapeError: a leaf has another shape than in the graph; the message lists all.
            ValueRangeError: units are not valid, or none would remain; the message lists all.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> import nnopt_jax as nnopt
            >>> apply = lambda p, x: jax.nn.relu(x @ p["fc1"]) @ p["fc2"]
            >>> params = {"fc1": jnp.ones((3, 4)), "fc2": jnp.arange(4.0)[:, None]}
            >>> graph = nnopt.graph(apply, params, jnp.ones((1, 3)))
            >>> small = graph.shrink(params, {"fc1:1": [1, 3]})
            >>> small.widths
            {'fc1': (3, 2), 'fc2': (2, 1)}
            >>> jax.jit(small.apply)(small.params, jnp.ones((5, 3)))[0]
            Array([12.], dtype=float32)
        """
        return shrink(self.apply, self.traced, self.coupled, params, keep)

    def mask(self, params: Params, keep: Keep) -> Params:
        """Set all elements of removed units to zero, without changing shapes.

        Args:
            params: arrays, of the graph's shapes.
            keep: the units to keep, by the name of a dimension of `graph.coupled`: a boolean array
                (units,), or integer unit numbers; dimensions that are not named keep all units.

        Raises:
            SelectionError: a dimension or a leaf is not known; the message lists all.
            ShapeError: a leaf has another shape than in the graph; the message lists all.
            ValueRangeError: units are not valid, or none would remain; the message lists all.

        Example:
            >>> import jax.numpy as jnp
            >>> import nnopt_jax as nnopt
            >>> params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 1))}
            >>> graph = nnopt.graph(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(3))
            >>> graph.mask(params, {"a:1": [0]})["a"][0]
            Array([1., 0.], dtype=float32)
        """
        return mask_units(self.coupled, params, keep)

    def permute(self, params: Params, order: Mapping[str, Any]) -> Params:
        """Reorder channels, neurons or heads without changing what the function computes.

        Args:
            params: arrays, of the graph's shapes.
            order: by the name of a dimension, a permutation of its unit numbers, an integer array
                (units,); entry `i` is the unit that moves to position `i`.

        Raises:
            SelectionError: a dimension or a leaf is not known; the message lists all.
            ShapeError: a leaf has another shape than in the graph; the message lists all.
            ValueRangeError: an order is not a permutation, or its units differ by more than their
                parameters; the message lists all.

        Example:
            >>> import jax.numpy as jnp
            >>> import nnopt_jax as nnopt
            >>> params = {"a": jnp.arange(6.0).reshape(3, 2), "b": jnp.array([[1.0], [2.0]])}
            >>> graph = nnopt.graph(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(3))
            >>> graph.permute(params, {"a:1": [1, 0]})["b"].ravel()
            Array([2., 1.], dtype=float32)
        """
        return permute_units(self.coupled, params, order)

    def _on_batch(self, params: Params, batch: Any) -> Any:
        """Call the function on parameters and one batch."""
        given = batch if isinstance(batch, tuple) else (batch,)
        if len(given) != len(self.args):
            plural = "s" if len(self.args) != 1 else ""
            raise CompositionError(
                f"graph.observe: a batch has {len(given)} entries, and the function takes "
                f"{len(self.args)} argument{plural} after the parameters; give a tuple of as many, "
                "(batch,) for one."
            )
        return self.apply(params, *given, **self.kwargs)

    def _check_keywords(self) -> None:
        """Raise if a keyword argument is an array, since the graph keeps only its shape."""
        wrong = Problems("graph.observe")
        for name, value in self.kwargs.items():
            if arrays_of(value):
                wrong.add(name, "is an array, and the graph holds no arrays; make it an entry of "
                          "the batch: lambda params, x, y: apply(params, x, name=y)")  # fmt: skip
        wrong.raise_as(CompositionError)

    def _with(self, params: Params, caller: str) -> Traced:
        """Return the traced function with other values of its parameters, after a check."""
        self._check(params, caller)
        return self.traced.with_parameters(arrays_of(params).values())

    def _check(self, params: Params, caller: str) -> None:
        """Raise if the paths or shapes of parameters differ from those of the graph."""
        shapes = {path: tuple(leaf.shape) for path, leaf in arrays_of(self.params).items()}
        lost = "is a leaf of the graph and is missing; give the whole tree"
        check_leaves(caller, shapes, params, lost, packed=True)

    def __str__(self) -> str:
        """Return a table of the leaves with their uses, axes and coupled dimensions."""
        names: dict[str, list[str]] = {}
        for dimension in self.coupled.dimensions:
            for path, _ in dimension.members:
                names.setdefault(path, []).append(dimension.name)
        header = ("leaf", "shape", "used by", "contracted", "output", "batch", "coupled")
        cells: list[tuple[str, ...]] = [header]
        for path, leaf in arrays_of(self.params).items():
            steps = dict.fromkeys(use.primitive for use in self.uses.of(path))
            roles = ["-"] * 3
            if axes := self.axes.get(path):
                roles = [listed(role) for role in (axes.contracted, axes.output, axes.batch)]
            shape = listed(leaf.shape)
            coupled = " ".join(dict.fromkeys(names.get(path, []))) or "-"
            cells.append((path, shape, ", ".join(steps) or "-", *roles, coupled))
        return "\n".join(aligned(cells))


def graph(
    apply: Callable[..., Any], params: Params, *args: Any, outputs: Outputs = everything,
    table: Table = TABLE, **kwargs: Any,
) -> Graph:  # fmt: skip
    """Trace a function of parameters once, on shapes, for every analysis of it.

    Args:
        apply: `apply(params, *args, **kwargs)`, any function that JAX can trace: a Flax, Equinox
            or Haiku model, a plain function, or a loss.
        params: a tree of arrays, packed leaves or `jax.ShapeDtypeStruct`s. Leaves of other kinds
            (such as the functions of an Equinox module) are passed to `apply` unchanged.
        *args: the further arguments of `apply`; for arrays, shapes and dtypes suffice.
        outputs: a function that selects the part of the result that must keep its widths when units
            are removed; other parts, such as running statistics, may shrink with their layers.
        table: the rules of the primitives; to add your own, pass
            `nnopt_jax.trace.primitives.TABLE.with_rule(primitive, make_rule)`.
        **kwargs: the keyword arguments of `apply`.

    Returns:
        The graph, which holds the function and the shapes, but no arrays.

    Raises:
        CompositionError: `apply` is not a function, or needs concrete values while it is traced.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"up": jnp.ones((8, 16)), "bias": jnp.ones(16), "down": jnp.ones((16, 4))}
        >>> apply = lambda p, x: jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"]
        >>> graph = nnopt.graph(apply, params, jnp.ones(8))
        >>> graph.axes["up"], graph.coupled.names
        (Axes(0, 1), ('up:1',))
    """
    check_function("graph", apply)
    params, args, kwargs = shapes_of((params, args, kwargs))
    found = trace(apply, (params, *args), kwargs, outputs, table)
    return Graph(apply, found, params, args, kwargs)
