"""What meets each parameter of a function, measured batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.errors import (
    CompositionError,
    Problems,
    SelectionError,
    ShapeError,
    StatisticsError,
    nearest,
)
from nnopt_jax.settings import takes
from nnopt_jax.trace.observed.mesh import mesh_of, replicated, replicating
from nnopt_jax.trace.observed.reading import SLOPES, Gauges, Reading, Totals, require_scalar
from nnopt_jax.trace.observed.seen import Observed, observed
from nnopt_jax.trace.observed.statistics import STATISTICS, Statistic, rows
from nnopt_jax.trace.observed.uses import floats, names_of, noted
from nnopt_jax.trace.traced import is_array, refilled, require_function, traced
from nnopt_jax.tree.select import Where, resolve
from nnopt_jax.typing import Array

Progress = Callable[[int, int | None], None]


def observe(
    function: Callable[[Any, Any], Any],
    params: Any,
    batches: Iterable[Any],
    statistics: str | Statistic | Iterable[str | Statistic] = ("input_absmax",),
    *,
    where: Where = "**",
    progress: Progress | None = None,
    strict: bool = False,
) -> Observed:
    r"""Runs a function on batches and measures what meets each of its parameters.

    The function is traced, once for each shape of batches, and every use of a leaf is found in
    its program: products, convolutions and lookups, however the leaf was transposed, reshaped,
    cast, cut or scaled by a number before; inside `jit`, `vmap`, `remat`, `scan`, `cond`,
    `while_loop` and functions with derivative rules of their own. Nothing of the model changes.

    Scanned leaves have entries for each of their layers; what a scan uses at every step is added
    up over the steps. A branch that is not taken adds nothing. Under `jax.vmap` both branches of
    a `cond` are computed, and both count.

    Args:
        function: `function(params, batch)`; for `"gradient"` and `"fisher"` a loss, which returns
            one float.
        params: a pytree of arrays; packed leaves are made dense for the run.
        batches: any iterable of batches, pytrees of arrays. All of them are used, one at a time;
            a last one may be smaller. They may be split over a mesh.
        statistics: what to measure, of `"input_absmax"`, `"input_range"`, `"input_moments"`,
            `"input_histogram"`, `"input_gram"`, `"input_count"`, `"output_moments"`,
            `"gradient"` and `"fisher"` (means over batches, as of `nnopt.statistics`). Functions
            of these names in `nnopt_jax.trace` take settings.
        where: which leaves.
        progress: `progress(done, total)` is called after each batch; `total` is None where
            `len(batches)` is not known.
        strict: makes a chosen leaf that something could not be measured of an error.

    Returns:
        The `Observed`: `seen[name][path]`, for `tx.init(params, stats=seen)`; use by use in
        `seen.by_use`.

    Raises:
        StatisticsError: there is no batch; a slope is asked for and the function is no loss; or,
            where `strict`, something could not be measured.
        SelectionError: a statistic is unknown, or the rule selects no leaf of floats.
        ShapeError: a block of `input_gram` does not divide what is summed over.
        CompositionError: the function cannot be traced, or batches are an array.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
        >>> batches = [jnp.array([[1.0, -4.0]]), jnp.array([[2.0, 0.0]])]
        >>> seen = nnopt.observe(
        ...     lambda p, x: x @ p["w"] + p["b"][None],
        ...     params,
        ...     batches,
        ...     ("input_absmax", "input_gram"),
        ... )
        >>> print(seen["input_absmax"]["w"])
        4.0
        >>> print(seen["input_gram"]["w"])
        [[ 5. -4.]
         [-4. 16.]]

    References:
        Frantar et al. 2022, GPTQ (`X^T X`); Chan et al. 1983 (moments); Kirkpatrick et al. 2017,
        section 2 (the diagonal of the Fisher information).
    """
    wanted, slopes = _wanted(statistics)
    _require_function(function)
    if is_array(batches):
        raise CompositionError(
            "observe: batches are an array; give [batch] for one, list(array) for its rows."
        )
    leaves = floats(params)
    paths = resolve(where, leaves, "observe")
    chosen = {path: leaves[path] for path in paths}
    reader = _Reader(function, params, chosen, wanted, slopes)
    totals = _added(reader, batches, progress)
    seen = observed(reader.first, totals)
    if strict:
        _require_all(seen)
    return seen


def _added(reader: _Reader, batches: Iterable[Any], progress: Progress | None) -> Totals:
    """The totals of all batches. The next one is made while the last is computed."""
    total = len(batches) if isinstance(batches, Sized) else None
    totals: Totals = {}
    done = 0

    def wait() -> None:
        jax.block_until_ready(totals)
        if done and progress is not None:
            progress(done, total)

    for batch in batches:
        wait()
        totals = reader.add(totals, batch)
        done += 1
    wait()
    if not done:
        raise StatisticsError("observe: there is no batch; give at least one.")
    return totals


class _Reader:
    """Reads the function once for each shape of batches."""

    def __init__(
        self,
        function: Callable[[Any, Any], Any],
        params: Any,
        chosen: dict[str, Any],
        statistics: Sequence[Statistic],
        slopes: tuple[str, ...],
    ) -> None:
        self._function = function
        self._leaves, self._tree = jax.tree.flatten(params)
        self._kept = [is_array(x) for x in self._leaves]
        self._arrays = [x for x, keep in zip(self._leaves, self._kept, strict=True) if keep]
        self._chosen = chosen
        self._statistics = statistics
        self._slopes = slopes
        self._steps: dict[Any, tuple[Reading, Callable[..., Totals]]] = {}

    @property
    def first(self) -> Reading:
        """Of the first batch."""
        return next(iter(self._steps.values()))[0]

    def add(self, totals: Totals, batch: Any) -> Totals:
        """Adds what one batch shows."""
        _require_arrays(batch)
        leaves, tree = jax.tree.flatten(jax.eval_shape(lambda x: x, batch))
        shape = tree, tuple(leaves)
        if shape not in self._steps:
            reading = self._read(batch)
            self._steps[shape] = reading, self._compiled(reading, batch)
            totals = self._started(reading, totals, batch)
        return self._steps[shape][1](totals, self._arrays, batch)

    def _params(self, arrays: Iterable[Any]) -> Any:
        return jax.tree.unflatten(self._tree, refilled(self._leaves, self._kept, arrays))

    def _read(self, batch: Any) -> Reading:
        found: list[Reading] = []

        def run(arrays: Any, batch: Any) -> Array:
            given = traced(self._function, (self._params(arrays), batch), {})
            require_scalar(given.program, self._slopes)
            notes = noted(given, self._chosen, self._statistics)
            statistics = {one.name: one for one in self._statistics}
            names = names_of(given, self._chosen)
            gauges = Gauges(notes.numbered(), statistics)
            found.append(Reading(given.program, names, gauges, self._slopes, self._chosen))
            return jnp.zeros(())

        jax.eval_shape(replicating(run, self._mesh(batch), 0), self._arrays, batch)
        _require_fit(found[-1])
        return found[-1]

    def _mesh(self, batch: Any) -> Any:
        return mesh_of((batch, self._arrays))

    def _started(self, reading: Reading, totals: Totals, batch: Any) -> Totals:
        """Totals with all that this shape of batches adds to."""
        at = replicated(self._mesh(batch))
        fresh = jax.jit(reading.start, out_shardings=at)()
        _require_same(totals, fresh)
        return {**fresh, **totals}

    def _compiled(self, reading: Reading, batch: Any) -> Callable[..., Totals]:
        mesh = self._mesh(batch)

        def step(totals: Totals, arrays: Any, batch: Any) -> Totals:
            return {**totals, **reading.step(totals, self._params(arrays), batch)}

        def placed(totals: Totals, arrays: Any, batch: Any) -> Totals:
            return replicating(step, mesh, totals)(totals, arrays, batch)

        return jax.jit(placed, donate_argnums=0, out_shardings=replicated(mesh))


def _wanted(
    statistics: str | Statistic | Iterable[str | Statistic],
) -> tuple[list[Statistic], tuple[str, ...]]:
    """The statistics of uses, rows among them, and the names of those of slopes."""
    given = [statistics] if isinstance(statistics, str | Statistic) else list(statistics)
    known = (*STATISTICS, *SLOPES)
    problems = Problems("observe")
    for one in given:
        if not isinstance(one, Statistic) and one not in known:
            hint = nearest(one, known) if isinstance(one, str) else f" Known: {', '.join(known)}."
            problems.add("", f"no statistic {one!r}.{hint}")
    names = [one if isinstance(one, str) else getattr(one, "name", one) for one in given]
    for name in sorted({str(name) for name in names if names.count(name) > 1}):
        problems.add("", f"statistic {name!r} is asked for twice.")
    if not given:
        problems.add("", f"no statistic is asked for. Known: {', '.join(known)}.")
    problems.raise_as(SelectionError)
    found = [one for one in given if isinstance(one, Statistic)]
    found += [STATISTICS[one]() for one in given if isinstance(one, str) and one in STATISTICS]
    return [*found, rows()], tuple(name for name in SLOPES if name in names)


def _require_function(function: Any) -> None:
    require_function("observe", function)
    if not takes(function, "params", "batch"):
        name = getattr(function, "__name__", repr(function))
        raise CompositionError(
            f"observe: {name} does not take (params, batch). Write e.g. "
            "lambda params, batch: model.apply(params, *batch)."
        )


def _require_arrays(batch: Any) -> None:
    """Wants batches of arrays and numbers."""
    for x in jax.tree.leaves(batch):
        if not (is_array(x) or isinstance(x, np.generic | bool | int | float | complex)):
            raise CompositionError(
                f"observe: needs arrays, and a batch holds {x!r}. What is no array belongs into "
                "a closure: lambda params, x: apply(params, x, name)."
            )


def _require_fit(reading: Reading) -> None:
    """Wants settings of statistics that fit what they measure."""
    problems = Problems("observe")
    for site in reading.gauges.sites.values():
        for name, state in site.states.items():
            text = reading.gauges.statistics[name].check(state)
            if text:
                problems.add(site.use.path, f"{name}: {text}")
    problems.raise_as(ShapeError)


def _require_same(totals: Totals, fresh: Totals) -> None:
    """Wants batches of another shape to be used in the same way as the first."""
    problems = Problems("observe")
    for name, path, number in totals.keys() & fresh:
        key = name, path, number
        shapes = [[x.shape for x in jax.tree.leaves(one[key])] for one in (totals, fresh)]
        if shapes[0] != shapes[1]:
            problems.add(path, f"its use {number} is another one for batches of another shape: "
                               f"{name} of {shapes[1]}, and of {shapes[0]} before"
                         )  # fmt: skip
    problems.raise_as(CompositionError)


def _require_all(seen: Observed) -> None:
    problems = Problems("observe")
    for name, lacking in seen.lacking.items():
        for path, reason in lacking.items():
            problems.add(path, f"has no {name}: {reason}")
    problems.raise_as(StatisticsError)
