"""One analysis of a model: what its function does with each of its parameters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from nnopt_jax.columns import aligned
from nnopt_jax.errors import CompositionError, Problems
from nnopt_jax.trace.axes import axes_of
from nnopt_jax.trace.cost.cost import count_cost
from nnopt_jax.trace.cost.table import Cost
from nnopt_jax.trace.coupling.analysis import Outputs
from nnopt_jax.trace.coupling.choice import Keep, checked
from nnopt_jax.trace.coupling.coupled_axes import CoupledAxes, coupled_axes
from nnopt_jax.trace.coupling.rearrange import mask_units, permute_units
from nnopt_jax.trace.coupling.shrink import ShrunkModel, shrink
from nnopt_jax.trace.primitives import TABLE, Table
from nnopt_jax.trace.statistics.leaf_uses import LeafUses
from nnopt_jax.trace.statistics.observe import Progress, observe
from nnopt_jax.trace.statistics.observed import Observed
from nnopt_jax.trace.statistics.statistic import Statistic
from nnopt_jax.trace.statistics.use_sites import uses_of
from nnopt_jax.trace.traced import Traced, arrays_of, is_array
from nnopt_jax.transform.axes_table import AxesTable
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import Params


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """A function of parameters, traced once: uses, axes, coupled axes, cost, statistics.

    Args:
        apply: the function.
        traced: its program, and the shapes of its inputs.
        params: its parameters, shapes in place of arrays.
        args: its further arguments, likewise.
        kwargs: its keyword arguments, likewise.
        outputs: the part of what it returns that must keep its widths.
        table: where the primitives of the program are described.

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
    outputs: Outputs
    table: Table = TABLE

    @functools.cached_property
    def uses(self) -> LeafUses:
        """Every step that uses a float leaf, and which of the leaf's axes it sums over."""
        return uses_of(self.traced, self.params, self.table)

    @functools.cached_property
    def axes(self) -> AxesTable:
        """The contracted, output and batch axes of each weight."""
        return axes_of(self.traced, self.outputs, self.table)

    @functools.cached_property
    def coupled(self) -> CoupledAxes:
        """Which axes of which leaves change together, and why others cannot."""
        return coupled_axes(self.traced, self.outputs, self.table)

    def cost(self, params: Params | None = None, *, latency: bool = False) -> Cost:
        """Count what a call costs, for each leaf: FLOPs, bytes, and milliseconds where asked.

        Work belongs to the leaf it is done for: products to the leaf that is contracted, also
        after it was transposed, reshaped, cast, cut or unpacked. Of two leaves in one product the
        larger counts. Products of activations, and steps that are not contractions, have rows of
        their own.

        - A contraction costs two FLOPs for each product it sums, `2 m k n` for a matrix product; a
          convolution one product for each position, tap and pair of features. Padding counts (as
          in papers; XLA leaves it out), the holes of a transposed convolution do not.
        - Any other step costs one FLOP for each entry it gives, or one transcendental, a reduction
          of `n` entries `n - 1`, movements and lookups none, as XLA counts before it simplifies.
          Work that nothing depends on does not count; work that is written twice counts twice.
        - A scan costs its body times its length. Of a `while` the body counts once, of a `cond`
          the dearest branch, and the result says so, as it does of steps that have no count.
        - Packed parameters cost what `nnopt.on_packed` does with them: two thin products for
          factors, integer products where there are some, and unpacking where there is unpacking.

        Args:
            params: what is counted: arrays, shapes or packed leaves; None for the graph's own.
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
        return count_cost(given, latency=latency, table=self.table)

    def observe(
        self,
        params: Params,
        batches: Iterable[Any],
        names: str | Statistic | Iterable[str | Statistic] = ("input_absmax",),
        *,
        where: Where = "**",
        progress: Progress | None = None,
        strict: bool = False,
    ) -> Observed:
        r"""Run the function on batches and measure what each weight is multiplied with.

        Every use of a leaf is found in the program: products, convolutions and lookups, however
        the leaf was transposed, reshaped, cast, cut or scaled by a number before; inside `jit`,
        `vmap`, `remat`, `scan`, `cond`, `while_loop` and functions with derivative rules of their
        own. Scanned leaves have entries for each of their layers; what a scan uses at every step
        is added up over the steps. A branch that is not taken adds nothing. Under `jax.vmap` both
        branches of a `cond` are computed, and both count.

        Args:
            params: the parameters; packed leaves are materialized for the run.
            batches: any iterable. A batch is the tuple of arguments after `params`; anything else
                is a tuple of one. All of them are used, one at a time; a last one may be smaller.
                They may be split over a mesh.
            names: what to measure, of `"input_absmax"`, `"input_range"`, `"input_moments"`,
                `"input_histogram"`, `"input_gram"`, `"input_count"`, `"output_moments"` and, of a
                loss, means over batches of `"gradient"`, `"fisher"` and `"hessian_gradient"`.
                Functions of these names in `nnopt_jax.trace` take settings; see `tx.needs`.
            where: which leaves.
            progress: `progress(done, total)` is called after each batch; `total` is None where
                `len(batches)` is not known.
            strict: makes a chosen leaf of which something could not be measured an error.

        Returns:
            The `Observed`: `seen[name][path]`, for `tx.init(params, stats=seen)`; use by use in
            `seen.by_use`.

        Raises:
            StatisticsError: there is no batch; a slope is asked for and the function is not a
                loss; or, where `strict`, something could not be measured.
            SelectionError: a statistic is unknown, or the rule selects no leaf of floats.
            ShapeError: parameters have other shapes than the graph; or a block of `input_gram`
                does not divide what is summed over.
            CompositionError: batches are an array, or do not fit the function.

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

        on_batch.__name__ = self._name  # errors name the user's function
        return observe(
            on_batch, params, batches, names, where=where, progress=progress, strict=strict,
            table=self.table,
        )  # fmt: skip

    def shrink(self, params: Params, keep: Keep) -> ShrunkModel:
        """Remove units: smaller parameters, and a smaller function that computes the same.

        The same as the model with zeros in place of all elements of the removed units,
        `apply(graph.mask(params, keep), ...)`, up to the order of sums. The function is traced
        anew at its old widths whenever it is called with new shapes, and each step is computed at
        the smaller ones; the model is not rebuilt. Gradients, `jit`, `vmap`, `jax.checkpoint` and
        `jax.export` go through it, and functions with derivative rules of their own keep them.

        Args:
            params: arrays, of the graph's shapes.
            keep: by name of a dimension of `graph.coupled` the units that stay, as booleans for
                all or as numbers; dimensions that are not named stay whole.

        Returns:
            The `ShrunkModel`: `.params`, `.apply`, and `.widths` by path.

        Raises:
            SelectionError: a dimension or a leaf is not known; all are named.
            ShapeError: a leaf has another shape than in the graph; all are named.
            ValueRangeError: units are given wrongly, or none would be left; all are named.

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
        return shrink(self.apply, self.coupled, self.outputs, params, keep, self.table)

    def mask(self, params: Params, keep: Keep) -> Params:
        """Set all elements of removed units to zero; shapes stay.

        Args:
            params: arrays, of the graph's shapes.
            keep: by name of a dimension of `graph.coupled` the units that stay.

        Raises:
            SelectionError: a dimension or a leaf is not known; all are named.
            ShapeError: a leaf has another shape than in the graph; all are named.
            ValueRangeError: units are given wrongly, or none would be left; all are named.

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
            order: by name of a dimension which unit comes to each place: a permutation.

        Raises:
            SelectionError: a dimension or a leaf is not known; all are named.
            ShapeError: a leaf has another shape than in the graph; all are named.
            ValueRangeError: an order is not a permutation, or its units differ by more than their
                parameters; all are named.

        Example:
            >>> import jax.numpy as jnp
            >>> import nnopt_jax as nnopt
            >>> params = {"a": jnp.arange(6.0).reshape(3, 2), "b": jnp.array([[1.0], [2.0]])}
            >>> graph = nnopt.graph(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(3))
            >>> graph.permute(params, {"a:1": [1, 0]})["b"].ravel()
            Array([2., 1.], dtype=float32)
        """
        return permute_units(self.coupled, params, order)

    @property
    def _name(self) -> str:
        """The name of the function, or of its type."""
        return getattr(self.apply, "__name__", type(self.apply).__name__)

    def _on_batch(self, params: Params, batch: Any) -> Any:
        """The function of parameters and one batch."""
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
        """Raise if a keyword argument is an array, of which the graph has the shape alone."""
        wrong = Problems("graph.observe")
        for name, value in self.kwargs.items():
            if any(map(is_array, jax.tree.leaves(value))):
                wrong.add(name, "is an array, and the graph holds no arrays; make it an entry of "
                          "the batch: lambda params, x, y: apply(params, x, name=y)")  # fmt: skip
        wrong.raise_as(CompositionError)

    def _with(self, params: Params, who: str) -> Traced:
        """The traced function with other values in place of its parameters."""
        self._check(params, who)
        return self.traced.with_parameters(arrays_of(params).values())

    def _check(self, params: Params, who: str) -> None:
        """Raise if parameters are not those of the graph."""
        shapes = {path: tuple(leaf.shape) for path, leaf in arrays_of(self.params).items()}
        lost = "is a leaf of the graph and is missing; give the whole tree"
        checked(who, shapes, params, lost, packed=True)

    def __str__(self) -> str:
        """The table of leaves: what uses them, their axes, and the dimensions they belong to."""
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
                roles = [_listed(role) for role in (axes.contracted, axes.output, axes.batch)]
            shape = _listed(leaf.shape)
            coupled = " ".join(dict.fromkeys(names.get(path, []))) or "-"
            cells.append((path, shape, ", ".join(steps) or "-", *roles, coupled))
        return "\n".join(aligned(cells))

    def __repr__(self) -> str:
        """Show the function and how many leaves it has."""
        return f"Graph({self._name}, {len(arrays_of(self.params))} leaves)"


def _listed(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers)) or "-"
