"""Quantization to any grid, with any granularity, range and rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict, TypeVar

import jax.numpy as jnp

from nnopt_jax.arrays.nodes import Node, materialize
from nnopt_jax.arrays.refinement import Slot
from nnopt_jax.errors import call_hint
from nnopt_jax.quantization.granularity import Sharing, sharing
from nnopt_jax.quantization.grids import GRIDS, Grid
from nnopt_jax.quantization.ranges import RANGES
from nnopt_jax.quantization.rounding import ROUNDINGS, Rounding
from nnopt_jax.quantization.scale_format import ScaleFormat
from nnopt_jax.quantization.weight_ranges import Task, WeightRange
from nnopt_jax.settings import Settings
from nnopt_jax.transform import presets
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import Start, Update, matrices, refresh_when
from nnopt_jax.transform.presets import recorded
from nnopt_jax.transform.slotwise import refining
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import DTypeLike

__all__ = ["QuantizationChoices", "on_grid", "preset"]


Choice = TypeVar("Choice")


class QuantizationChoices(TypedDict, total=False):
    """The keyword arguments that every preset of quantization passes on to `on_grid`."""

    where: Where
    granularity: Literal["tensor", "channel"] | None
    group: int | None
    axis: int | None
    rounding: Rounding | str
    scale_dtype: DTypeLike | None
    every: int


@recorded
def on_grid(
    grid: Grid | str,
    *,
    where: Where = matrices,
    granularity: Literal["tensor", "channel"] | None = None,
    group: int | None = None,
    axis: int | None = None,
    range: WeightRange | str | None = None,
    rounding: Rounding | str = "nearest",
    scale_dtype: DTypeLike | None = None,
    double: bool = False,
    every: int = 1,
    name: str | None = None,
) -> Transform:
    r"""Round weights to the values of a grid, both in training and in storage.

    $$ \hat w = s \, l_c, \qquad c = \arg\min_k |w / s - l_k| $$

    for the values $l$ of the grid and a scale $s$ for each block; integers with a zero point $z$
    have $l_c = c - z$. The gradient passes straight through, except where the range clips a weight.
    Masked entries do not count for a range. A block of zeros, or with NaN or infinity, gets a
    nonzero, finite scale. Any grid goes with any granularity, range and rounding; a combination
    without meaning raises an error that says why (docs/choices.md).

    Args:
        grid: a value of `quantization.grids`, the name of one, or a user's `Grid`.
        where: which leaves; default: those of two axes or more.
        granularity: which weights share a scale. `"tensor"`: all entries of a matrix, of which a
            leaf with batch axes holds several. `"channel"`: all entries with the same index on the
            output axes. By default, the grid's own granularity. Arrays of one axis (such as the
            table of shared weights) get one scale.
        group: the number of entries of a group along the contracted axes, flattened in the order of
            the product, in place of `granularity`; the last group may be shorter, if the format of
            the grid allows it.
        axis: the channel axis, in place of the output axes.
        range: how the scale of a block is chosen: a value of `quantization.ranges`, or the name of
            one. By default, the grid's own range.
        rounding: a value of `quantization.rounding`, or the name of one.
        scale_dtype: the dtype in which scales (with `double`, their own scales) are stored and
            applied; `"e8m0"` for powers of two. By default float16 for groups, else float32. Scales
            that underflow or overflow in float16 raise an error, except under `jax.jit`.
        double: whether scales are quantized, too, to 8 bits with a second scale for at most 256
            consecutive scales along the output axes.
        every: updates between two choices of the range.
        name: the name of the method in errors and plans; by default `"quantization.<grid>"`.

    Returns:
        The transform. It refines: masks and tables above it stay.

    Raises:
        ValueRangeError: a setting is out of range, or a combination has no meaning.
        ShapeError: at `init`, axes are not known or do not fit a leaf; see `bind`.
        CompositionError: at `init`, a leaf is quantized already.
        ScaleError: scales underflow or overflow; the error names all such leaves.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.on_grid("nf4", granularity="channel", range="mse")
        >>> params = {"kernel": jnp.array([[2.0, -0.3], [1.0, 0.1]])}
        >>> nnopt.quantization.on_grid(nnopt.quantization.grids.fp4(), group=32).name
        'quantization.fp4'

    References:
        Jacob et al. 2018, Quantization and Training of Neural Networks, section 2.1; Dettmers et
        al. 2023, QLoRA, section 3.
    """
    label = grid if isinstance(grid, str) else getattr(grid, "name", "on_grid")
    settings = Settings(name or f"quantization.{label}")
    values = _value(settings, "grid", grid, Grid, GRIDS, "int8")
    if values.check is not None:
        values.check(settings)
    shared = sharing(
        settings, granularity, group, axis, default=values.granularity, even=values.whole_groups
    )
    chosen = _value(settings, "range", range or values.range, WeightRange, RANGES, "absmax")
    chosen.check(settings, values)
    settings.integer("every", every, 1)
    rounds = _value(settings, "rounding", rounding, Rounding, ROUNDINGS, "nearest")
    scales = _scale_format(settings, values, shared, scale_dtype, double)
    if double is True or scale_dtype == "e8m0":
        _check_special_scales(settings, values, chosen, double, given=range is not None)
    if chosen.has_codes and not rounds.is_nearest:
        rule = f"the range {chosen}" if range else f"the grid {values}"
        settings.wrong("rounding", rounds, f"does not apply, because {rule} has a rule of its own "
                                           "for rounding; leave it out.")  # fmt: skip
    settings.done()
    way = _Quantizer(values, shared, chosen, rounds, scales, every)
    return refining(
        name or f"quantization.{values.name}",
        where,
        init=way.init,
        encode=way.encode,
        refresh=way.refresh,
        project=chosen.project if chosen.projects else None,
        check=shared.misfit,
        kinds=("value",),
        exact=chosen.is_exact,
        needs_axes=lambda slot: shared.needs_axes(slot) or chosen.needs_axes(slot.array.ndim),
    )


preset = presets.preset(on_grid, QuantizationChoices)


@dataclasses.dataclass(frozen=True)
class _Quantizer:
    """The settings of `on_grid`, and the functions of its transform for one slot."""

    grid: Grid
    sharing: Sharing
    range: WeightRange
    rounding: Rounding
    scales: ScaleFormat
    every: int

    def init(self, slot: Slot, start: Start) -> tuple[Any, Any]:
        task = self._task(slot)
        learned, rest = self.range.init(task)
        offsets, others = self.rounding.init(task.part.array, start)
        return _join_states(learned, offsets), _join_states(rest, others)

    def encode(self, slot: Slot, learned: Any, rest: Any, train: bool) -> Node:
        task = self._task(slot)
        (of_range, offsets), (fitted, others) = map(self._split_state, (learned, rest))
        scaled = self.range.scaled(task, of_range, fitted)
        x = task.part.array
        if self.range.has_codes:
            codes = self.range.codes(task, of_range, fitted)
        else:
            zero = None if scaled.zero is None else materialize(scaled.zero)
            found = materialize(scaled.scale), zero
            codes = self.rounding.codes(self.grid, x, found, (offsets, others), train)
        carry = self.range.carry(task, scaled, codes, of_range, fitted)
        carry = self.rounding.carry(self.grid, carry, materialize(scaled.scale), codes, offsets)
        return task.part.in_place(self.range.node(task, scaled, codes, carry))

    def refresh(self, slot: Slot, learned: Any, rest: Any, now: Update) -> tuple[Any, Any]:
        task = self._task(slot)
        (of_range, offsets), (fitted, others) = map(self._split_state, (learned, rest))
        due = self.every == 1 or now.count % self.every == 0
        chosen = refresh_when(
            due, lambda: self.range.refresh(task, of_range, fitted), (of_range, fitted)
        )
        offsets, others = self.rounding.refresh(offsets, others, now)
        return _join_states(chosen[0], offsets), _join_states(chosen[1], others)

    def _task(self, slot: Slot) -> Task:
        return Task(self.grid, self.sharing.blocked(slot), self.scales, self.every == 1)

    def _split_state(self, state: Any) -> tuple[Any, dict[str, Any]]:
        """Split a state into the state of the range and the state of the rounding."""
        if self.rounding.is_nearest or not isinstance(state, dict):
            return state, {}
        own = {key: state[key] for key in self.rounding.keys if key in state}
        others = {key: x for key, x in state.items() if key not in own}
        return others.get("range", others or None), own


def _join_states(state: Any, others: dict[str, Any]) -> Any:
    """Join the states of range and rounding; the state of rounding to nearest is empty."""
    if not others:
        return state
    state = {} if state is None else state
    if not isinstance(state, dict) or state.keys() & others.keys():
        state = {"range": state}
    return state | others


def _value(
    settings: Settings,
    name: str,
    given: Any,
    kind: type[Choice],
    known: Mapping[str, Callable[..., Choice]],
    instead: str,
) -> Choice:
    """Return the caller's grid, range or rounding; make it if a name is given."""
    if isinstance(given, kind):
        return given
    if isinstance(given, str) and given in known:
        return known[given]()
    if isinstance(given, str):
        settings.choice(name, given, tuple(known))
    else:
        settings.wrong(name, given, f"is not a {kind.__name__}; give one, or a name: "
                                    f"{', '.join(map(repr, known))}.{call_hint(given)}",
                       )  # fmt: skip
    return known[instead]()


def _scale_format(
    settings: Settings,
    grid: Grid,
    shared: Sharing,
    dtype: DTypeLike | None,
    double: bool,
) -> ScaleFormat:
    settings.flag("double", double)
    in_groups = not isinstance(shared.granularity, str)
    in_groups = in_groups and double is not True  # these are the scales of scales
    default = grid.scale_dtype or ("float16" if in_groups else "float32")
    found: Any = default if dtype is None else dtype
    if grid.dtypes and dtype is not None and str(dtype) not in grid.dtypes:
        settings.wrong("scale_dtype", dtype, f"is not a dtype in which {grid} stores its scales; "
                                             "leave it out.")  # fmt: skip
    is_power = isinstance(found, str) and found == "e8m0"
    if not is_power:
        settings.floating("scale_dtype", found)
    if is_power and double is True:
        settings.wrong("double", double, "quantizes scales that are floats, and these are powers "
                                         "of two.")  # fmt: skip
    return ScaleFormat(jnp.float32 if is_power else found, double is True, is_power)


def _check_special_scales(
    settings: Settings, grid: Grid, range: WeightRange, double: bool, *, given: bool
) -> None:
    """Record grids and ranges that quantized or power-of-two scales do not support.

    Args:
        settings: receives the problems.
        grid: the grid.
        range: the range.
        double: whether scales are quantized; else they are powers of two.
        given: whether the caller chose the range; else the grid did.
    """
    special = "double=True" if double is True else "e8m0"
    if grid.has_zero_point:
        settings.wrong("grid", grid, f"has zero points, and {special} stores scales alone; give a "
                                     "symmetric grid.")  # fmt: skip
    if range.needs_plain_scales and given:
        settings.wrong("range", range, f"makes scales that {special} cannot store; give 'absmax' "
                                       "or 'mse'.")  # fmt: skip
    elif range.needs_plain_scales and double is True:
        settings.wrong("double", True, f"does not apply to {grid}, whose format defines the "
                                       "scales; leave it out.")  # fmt: skip
