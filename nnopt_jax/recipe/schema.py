"""The schema of recipes: frozen dataclasses whose fields are the keys of the YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Call", "Distill", "Parallel", "Recipe", "Stage", "TransformCall", "WarmStart"]


@dataclass(frozen=True)
class Call:
    """A call in a recipe: the name of a callable, and keyword arguments.

    In YAML, a call is `package.module:callable` or a mapping `{source: package.module:callable,
    ...}`.

    Args:
        source: `package.module:callable`; the working directory is on the import path.
        kwargs: the keyword arguments. A mapping with a `source` is itself a call, whose result is
            the argument. A percentage such as `70%` means that fraction of the steps of the stage.

    Example:
        >>> from nnopt_jax.recipe.schema import Call
        >>> Call("optax:sgd", {"learning_rate": 0.1}).source
        'optax:sgd'
    """

    source: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TransformCall:
    """One transform of a stage: the name of a method, and its settings.

    In YAML, a transform is `- pruning.magnitude: {sparsity: 0.9}`.

    Args:
        method: a name of `nnopt_jax.registry`, or `package.module:callable` for your own.
        kwargs: its settings, like those of a `Call`.
    """

    method: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A stage of training: a number of epochs under one chain of transforms.

    Args:
        name: the name in tables and metrics.
        epochs: passes over the training split.
        transforms: the transforms that are appended to the chain of the stages before. A transform
            stays until the end of the run and keeps its state (its masks, its tables).
        optimizer: an optax optimizer with a new state; by default that of the recipe.
        statistics: the number of training batches over which gradients are averaged before the
            first step, for transforms whose initial scores need them.
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
        teacher: the folder of a finished run, or a recipe file, which runs first, in the folder
            `teacher` of this run.
        weight: the weight of the teacher's loss, from 0 to 1.
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
    """A network whose parameters this one starts from.

    Args:
        run: the folder of a finished run, or a recipe file, which runs first, in the folder `start`
            of this run.
        layers: the paths of the layers, as in `nnopt_jax.transfer.select_layers`, if the two
            networks differ in depth; otherwise null.
        how: which layer is copied from which; see `nnopt_jax.transfer.layer_map`.
        zero: the leaves of a new layer that start as zeros; see `nnopt_jax.transfer.deepen`.

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
    """A rule that splits some leaves of the model over devices.

    Args:
        where: a glob, or `re:` and a regular expression, over paths.
        split: for each axis the mesh axis that it is split over, a list of mesh axes, or null; null
            in place of the whole list for leaves that are replicated.
    """

    where: str
    split: Any


@dataclass(frozen=True)
class Parallel:
    """The settings of a run on many devices.

    Args:
        mesh: the number of devices along each axis; -1 for the rest. The axis `data` splits the
            batch, `fsdp` the batch and the parameters; other axes are for rules.
        rules: rules of tensor parallelism.
        fsdp: the mesh axis of parameter parallelism, if the mesh has it; null for none.
        least: the number of bytes below which arrays are replicated on the `fsdp` axis.
        accumulate: the number of micro-batches that a batch is divided into.
        remat: whether the backward pass recomputes values instead of storing them.

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
    """The description of a whole run.

    Args:
        name: the name of the run.
        model: the call that makes the network; see `nnopt_jax.interop.flax.adapt` for the three
            kinds.
        data: the call that returns an object with `train`, `test` and perhaps `valid`, each with
            arrays `x` and `y`.
        stages: the stages of training, in order.
        loss: `(logits, labels) -> scalar`, to be minimized.
        metric: `(logits, labels) -> scalar`, the smaller the better, reported as the error.
        distill: a teacher for all stages, or null.
        start: a network to start from; by default the model's own initial parameters.
        program: whether the file also stores the program of the network, so that
            `nnopt_jax.transfer.load_model` runs it without the model's code.
        augment: `(inputs, key) -> inputs`, applied to every training batch inside the step.
        parallel: a mesh of devices; by default one device.
        optimizer: the optimizer of stages that do not name one.
        batch_size: examples in a step; the rest of an epoch that does not fill a batch is skipped.
        seed: the seed of the parameters, the order of batches and the transforms.
        log_every: steps between two rows of `metrics.jsonl`.
        checkpoint_every: steps between two checkpoints; one more ends each stage.
        output: the folder of the run; by default `runs/<name>`.
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
        """Return the folder of the run."""
        return self.output or f"runs/{self.name}"
