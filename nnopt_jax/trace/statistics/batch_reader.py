"""Measurement of the inputs and outputs of the weights of a function, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nnopt_jax.errors import (
    CompositionError,
    Problems,
    SelectionError,
    ShapeError,
    StatisticsError,
    nearest,
)
from nnopt_jax.trace.primitives import TABLE, Table
from nnopt_jax.trace.statistics.measured_run import OF_LOSS, MeasuredRun, ObservedProgram, Totals
from nnopt_jax.trace.statistics.observed import Observed, collect_results
from nnopt_jax.trace.statistics.statistic import Names, Statistic
from nnopt_jax.trace.statistics.statistics import STATISTICS, rows
from nnopt_jax.trace.statistics.use_sites import float_leaves, follow_leaves, number_uses, paths_of
from nnopt_jax.trace.traced import Traced, is_array, refill, trace
from nnopt_jax.tree.devices import automatic
from nnopt_jax.tree.select import Where, resolve
from nnopt_jax.typing import Array


def mesh_of(tree: Any) -> Mesh | None:
    """Return the mesh that arrays are sharded over; None if they are on a single device."""
    for x in jax.tree.leaves(tree):
        at = getattr(x, "sharding", None)
        if isinstance(at, NamedSharding) and isinstance(at.mesh, Mesh) and at.mesh.size > 1:
            return at.mesh
    return None


def replicated_sharding(mesh: Mesh | None) -> NamedSharding | None:
    """Return the sharding that replicates an array on every device; None without a mesh."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def replicate_outputs(
    function: Callable[..., Any], mesh: Mesh | None, out: Any
) -> Callable[..., Any]:
    """Let the compiler shard a function, and replicate its outcome on all devices.

    Args:
        function: a function of arrays on the mesh.
        mesh: the mesh, or None.
        out: a tree of the structure of the outcome.
    """
    if mesh is None:
        return function
    return automatic(function, mesh, jax.tree.map(lambda _: replicated_sharding(mesh), out))


Progress = Callable[[int, int | None], None]


def observe(
    function: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any],
    statistics: Names, where: Where, progress: Progress | None, strict: bool, table: Table,
) -> Observed:  # fmt: skip
    """Run a function on batches and measure the inputs and outputs of its weights.

    Args:
        function: `function(params, batch)`.
        params: a pytree of arrays and packed leaves.
        batches: any iterable of batches, which are pytrees of arrays.
        statistics: the statistics to measure, by name or as `Statistic`s.
        where: which leaves to measure.
        progress: a function `progress(done, total)` to call after each batch.
        strict: whether to raise if a statistic of a chosen leaf could not be measured.
        table: the rules of the primitives.
    """
    wanted, of_loss = _split_names(statistics)
    if is_array(batches):
        raise CompositionError(
            "graph.observe: batches are an array; give [batch] for one, list(array) for its rows."
        )
    leaves = float_leaves(params)
    paths = resolve(where, leaves, "graph.observe")
    chosen = {path: leaves[path] for path in paths}

    def read(params: Any, batch: Any) -> ObservedProgram:
        return read_program(function, params, batch, chosen, wanted, of_loss, table)

    reader = _BatchReader(params, read)
    totals = _add_batches(reader, batches, progress)
    seen = collect_results(reader.first, totals)
    if strict:
        _check_all(seen)
    return seen


def _add_batches(reader: _BatchReader, batches: Iterable[Any], progress: Progress | None) -> Totals:
    """Return the totals of all batches; each is loaded while the one before is computed."""
    total = len(batches) if isinstance(batches, Sized) else None
    totals: Totals = {}
    done = 0

    def wait() -> None:
        jax.block_until_ready(totals)
        if done and progress is not None:
            progress(done, total)

    for batch in batches:
        wait()
        # Calls return before they finish: one batch is computed while the next is loaded.
        totals = reader.add(totals, batch)
        done += 1
    wait()
    if not done:
        raise StatisticsError("graph.observe: there is no batch; give at least one.")
    return totals


class _BatchReader:
    """A function of batches that is analyzed and compiled once for each shape of batches."""

    def __init__(self, params: Any, read: Callable[[Any, Any], ObservedProgram]) -> None:
        self._leaves, self._tree = jax.tree.flatten(params)
        self._kept = [is_array(x) for x in self._leaves]
        self._arrays = [x for x, keep in zip(self._leaves, self._kept, strict=True) if keep]
        self._read = read
        self._steps: dict[Any, tuple[ObservedProgram, Callable[..., Totals]]] = {}

    @property
    def first(self) -> ObservedProgram:
        """The analyzed program for batches of the shape of the first one."""
        return next(iter(self._steps.values()))[0]

    def add(self, totals: Totals, batch: Any) -> Totals:
        """Add the statistics of one batch to the totals."""
        _check_arrays(batch)
        # Shapes and dtypes are the key, also for numbers and NumPy arrays.
        leaves, tree = jax.tree.flatten(jax.eval_shape(lambda x: x, batch))
        shape = tree, tuple(leaves)
        if shape not in self._steps:
            analyzed = self._analyze(batch)
            self._steps[shape] = analyzed, self._compiled(analyzed, batch)
            totals = self._add_initial(analyzed, totals, batch)
        return self._steps[shape][1](totals, self._arrays, batch)

    def _params(self, arrays: Iterable[Any]) -> Any:
        return jax.tree.unflatten(self._tree, refill(self._leaves, self._kept, arrays))

    def _analyze(self, batch: Any) -> ObservedProgram:
        found: list[ObservedProgram] = []

        def run(arrays: Any, batch: Any) -> Array:
            found.append(self._read(self._params(arrays), batch))
            return jnp.zeros(())

        # Under the same mesh as the later run, since tracing may depend on it.
        jax.eval_shape(replicate_outputs(run, self._mesh(batch), 0), self._arrays, batch)
        _check_settings(found[-1])
        return found[-1]

    def _mesh(self, batch: Any) -> Any:
        return mesh_of((batch, self._arrays))

    def _add_initial(self, analyzed: ObservedProgram, totals: Totals, batch: Any) -> Totals:
        """Add initial totals for statistics that batches of earlier shapes did not have."""
        at = replicated_sharding(self._mesh(batch))
        fresh = jax.jit(analyzed.start, out_shardings=at)()
        _check_same(self.first, analyzed, totals, fresh)
        return {**fresh, **totals}

    def _compiled(self, analyzed: ObservedProgram, batch: Any) -> Callable[..., Totals]:
        mesh = self._mesh(batch)

        def step(totals: Totals, arrays: Any, batch: Any) -> Totals:
            return {**totals, **analyzed.step(totals, self._params(arrays), batch)}

        def sharded_step(totals: Totals, arrays: Any, batch: Any) -> Totals:
            return replicate_outputs(step, mesh, totals)(totals, arrays, batch)

        # Totals are donated, since Gram matrices may be as large as the weights.
        return jax.jit(sharded_step, donate_argnums=0, out_shardings=replicated_sharding(mesh))


def read_program(
    function: Callable[[Any, Any], Any], params: Any, batch: Any, chosen: dict[str, Any],
    statistics: Sequence[Statistic], of_loss: tuple[str, ...] = (), table: Table = TABLE,
) -> ObservedProgram:  # fmt: skip
    """Trace a function on one batch, inside of a JAX trace, and find the uses of its leaves.

    Args:
        function: `function(params, batch)`.
        params: its parameters.
        batch: a batch.
        chosen: the leaves to follow, by path.
        statistics: the statistics to measure at each use.
        of_loss: the names of the statistics of a loss to measure.
        table: the rules of the primitives.
    """
    given = trace(function, (params, batch), {}, table=table)
    _check_scalar(given, of_loss)
    found = follow_leaves(given, chosen)
    sites = number_uses(found.uses, chosen, statistics)
    measures = MeasuredRun(sites, found.steps, {one.name: one for one in statistics})
    floats = paths_of(given, float_leaves(params))
    return ObservedProgram(given.program, floats, measures, of_loss, chosen)


def _split_names(statistics: Names) -> tuple[list[Statistic], tuple[str, ...]]:
    """Separate statistics of single uses from the names of statistics of a loss."""
    given = [statistics] if isinstance(statistics, str | Statistic) else list(statistics)
    known = (*STATISTICS, *OF_LOSS)
    problems = Problems("graph.observe")
    for one in given:
        if not isinstance(one, Statistic) and one not in known:
            hint = nearest(one, known) if isinstance(one, str) else f" Known: {', '.join(known)}."
            problems.add("", f"no statistic {one!r}.{hint}")
    names = [one if isinstance(one, str) else getattr(one, "name", one) for one in given]
    for name in sorted({str(name) for name in names if names.count(name) > 1}):
        problems.add("", f"statistic {name!r} is requested twice.")
    if not given:
        problems.add("", f"no statistic is requested. Known: {', '.join(known)}.")
    problems.raise_as(SelectionError)
    found = [one for one in given if isinstance(one, Statistic)]
    found += [STATISTICS[one]() for one in given if isinstance(one, str) and one in STATISTICS]
    # Numbers of rows show which leaves the batches have reached.
    return [*found, rows()], tuple(name for name in OF_LOSS if name in names)


def _check_arrays(batch: Any) -> None:
    """Raise if a batch contains anything but arrays and numbers."""
    for x in jax.tree.leaves(batch):
        if not (is_array(x) or isinstance(x, np.generic | bool | int | float | complex)):
            raise CompositionError(
                f"graph.observe: needs arrays, and a batch holds {x!r}. Close over values that "
                "are not arrays: lambda params, x: apply(params, x, name)."
            )


def _check_settings(analyzed: ObservedProgram) -> None:
    """Raise if settings of statistics, such as `block`, do not fit the shapes of the leaves."""
    problems = Problems("graph.observe")
    for site in analyzed.measures.sites.values():
        for name, state in site.states.items():
            text = analyzed.measures.statistics[name].check(state)
            if text:
                problems.add(site.use.path, f"{name}: {text}")
    problems.raise_as(ShapeError)


def _check_same(
    first: ObservedProgram, other: ObservedProgram, totals: Totals, fresh: Totals
) -> None:
    """Raise if the uses for batches of another shape differ from those for the first."""
    problems = Problems("graph.observe")
    for name, path, number in totals.keys() & fresh:
        key = name, path, number
        shapes = [[x.shape for x in jax.tree.leaves(one[key])] for one in (totals, fresh)]
        if shapes[0] != shapes[1]:
            problems.add(path, f"its use {number} is another one for batches of another shape: "
                               f"{name} of {shapes[1]}, and of {shapes[0]} before"
                         )  # fmt: skip
    owners = {site.key: site.owners for site in first.measures.sites.values()}
    for site in other.measures.sites.values():
        if owners.get(site.key, site.owners) != site.owners and not problems:
            problems.add(site.use.path, f"its use {site.use.number} shares its input with other "
                                        "leaves for batches of another shape; observe them apart"
                         )  # fmt: skip
    problems.raise_as(CompositionError)


def _check_all(seen: Observed) -> None:
    problems = Problems("graph.observe")
    for name, lacking in seen.lacking.items():
        for path, reason in lacking.items():
            problems.add(path, f"has no {name}: {reason}")
    problems.raise_as(StatisticsError)


def _check_scalar(given: Traced, of_loss: Sequence[str]) -> None:
    """Raise if statistics of a loss are wanted and the function does not return a loss."""
    outs = [out.aval for out in given.program.jaxpr.outvars]
    is_loss = [out.shape for out in outs] == [()] and jnp.issubdtype(outs[0].dtype, jnp.floating)
    if of_loss and not is_loss:
        types = ", ".join(str(out.str_short()) for out in outs)
        raise StatisticsError(
            f"graph.observe: {' and '.join(map(repr, of_loss))} need a loss, and the function "
            f"returns {types or 'nothing'}; give one that returns a single float, "
            "loss(params, batch)."
        )
