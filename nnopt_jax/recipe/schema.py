"""The settings of a recipe, as frozen dataclasses: field names are the keys of the YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Call", "Distill", "Parallel", "Recipe", "Stage", "TransformCall", "WarmStart"]


@dataclass(frozen=True)
class Call:
    """A callable by name, and the keyword arguments of its call.

    In YAML: `package.module:callable`, or a mapping `{source: package.module:callable, ...}`.

    Args:
        source: `package.module:callable`; the working directory is on the path.
        kwargs: the keyword arguments. A mapping that has a `source` is itself a call, whose
            result is the argument. A percentage such as `70%` is that fraction of the steps of
            the stage.

    Example:
        >>> from nnopt_jax.recipe.schema import Call
        >>> Call("optax:sgd", {"learning_rate": 0.1}).source
        'optax:sgd'
    """

    source: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TransformCall:
    """One transform of a stage.

    In YAML: `- pruning.magnitude: {sparsity: 0.9}`.

    Args:
        method: a name of `nnopt_jax.registry`, or `package.module:callable` for your own.
        kwargs: its settings, as those of a `Call`.
    """

    method: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A number of epochs under one chain of transforms.

    Args:
        name: the name in tables and metrics.
        epochs: passes over the training split.
        transforms: appended to the chain of the stages before. A transform stays to the end of
            the run and keeps its state (its masks, its tables).
        optimizer: an optax optimizer, started anew; default that of the recipe.
        statistics: training batches over which gradients are averaged before the first step, for
            transforms that score weights by them when they start.
    """

    name: str
    epochs: int
    transforms: tuple[TransformCall, ...] = ()
    optimizer: Call | None = None
    statistics: int = 16


@dataclass(frozen=True)
class Distill:
    """A teacher whose outputs the network imitates.

    The loss is `weight * loss(logits, teacher's logits) + (1 - weight) * loss of the labels`.

    Args:
        teacher: the folder of a finished run, or a recipe file, which is run first, into the
            folder `teacher` of this run.
        weight: the weight of the teacher, from 0 to 1.
        loss: `(student's logits, teacher's logits) -> scalar`.

    Example:
        >>> from nnopt_jax.recipe.schema import Distill
        >>> Distill("runs/lenet").loss.source
        'nnopt_jax.transfer:distillation_loss'
    """

    teacher: str
    weight: float = 0.9
    loss: Call = Call("nnopt_jax.transfer:distillation_loss", {"temperature": 4.0})


@dataclass(frozen=True)
class WarmStart:
    """Another network, whose parameters this one begins with.

    Args:
        run: the folder of a finished run, or a recipe file, which is run first, into the folder
            `start` of this run.
        layers: where the layers are, as `nnopt_jax.transfer.select_layers` takes it, if the two
            networks differ in depth; null where they do not.
        how: which layer comes from which; see `nnopt_jax.transfer.layer_map`.
        zero: leaves of a new layer that begin as zeros; see `nnopt_jax.transfer.deepen`.

    Example:
        >>> from nnopt_jax.recipe.schema import WarmStart
        >>> WarmStart("runs/deep", layers="block_{index}").how
        'even'
    """

    run: str
    layers: str | None = None
    how: str = "even"
    zero: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitRule:
    """The split of some leaves of the model over devices.

    Args:
        where: a glob, or `re:` and a regular expression, over paths.
        split: for each axis the mesh axis that it is split over, a list of them, or null; null
            in place of the list for leaves that stay whole.
    """

    where: str
    split: Any


@dataclass(frozen=True)
class Parallel:
    """Many devices for one run.

    Args:
        mesh: the number of devices along each axis; -1 for the rest. `data` splits the batch,
            `fsdp` the batch and the parameters, others are for rules.
        rules: tensor parallelism.
        fsdp: the axis for parameter parallelism, where the mesh has it; null for none.
        least: arrays of fewer bytes stay whole on the `fsdp` axis.
        accumulate: micro-batches that a batch is cut into.
        remat: whether the backward pass recomputes values that would else be kept.

    Example:
        >>> from nnopt_jax.recipe.schema import Parallel
        >>> Parallel({"data": -1}).accumulate
        1
    """

    mesh: Mapping[str, Any]
    rules: tuple[SplitRule, ...] = ()
    fsdp: str | None = "fsdp"
    least: int = 2**14
    accumulate: int = 1
    remat: bool = False


@dataclass(frozen=True, repr=False)
class Recipe:
    """A whole run.

    Args:
        name: the name of the run.
        model: makes the network; see `nnopt_jax.interop.flax.adapt` for the three kinds.
        data: returns an object with `train`, `test` and perhaps `valid`, each with arrays `x`
            and `y`.
        stages: the stages of training, in order.
        loss: `(logits, labels) -> scalar`, to be minimized.
        metric: `(logits, labels) -> scalar`, the smaller the better, reported as the error.
        distill: a teacher, if there is one; in all stages.
        start: another network to begin with; default: the model's own initial parameters.
        program: whether the file also holds the program of the network, so that
            `nnopt_jax.transfer.load_model` runs it where its code is not at hand.
        augment: `(inputs, key) -> inputs`, applied to every training batch inside the step.
        parallel: a mesh of devices; default one device.
        optimizer: for the stages that name none.
        batch_size: examples in a step; examples that do not fill a batch are left out of the
            epoch.
        seed: of the parameters, the order of the batches and the transforms.
        log_every: steps between two rows of `metrics.jsonl`.
        checkpoint_every: steps between two checkpoints; one more ends each stage.
        output: folder for everything that the run writes; default `runs/<name>`.
    """

    name: str
    model: Call
    data: Call
    stages: tuple[Stage, ...]
    loss: Call = Call("nnopt_jax.zoo.losses:cross_entropy")
    metric: Call = Call("nnopt_jax.zoo.losses:error_rate")
    distill: Distill | None = None
    start: WarmStart | None = None
    program: bool = False
    augment: Call | None = None
    parallel: Parallel | None = None
    optimizer: Call = Call("optax:adam", {"learning_rate": 1e-3})
    batch_size: int = 128
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    output: str | None = None

    def __repr__(self) -> str:
        """Return the name, the model and the stages."""
        stages = f"{len(self.stages)} stages"
        return f"Recipe({self.name!r}: {self.model.source} on {self.data.source}, {stages})"

    @property
    def folder(self) -> str:
        """Return the folder that the run writes into."""
        return self.output or f"runs/{self.name}"
