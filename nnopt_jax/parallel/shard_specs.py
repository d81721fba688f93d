"""Plans for splitting parameters over a mesh, and the placement of arrays by a plan."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from nnopt_jax.arrays.nodes import field_specs, is_node, summary
from nnopt_jax.columns import Tabular, aligned, brief_fields, counted
from nnopt_jax.errors import CompositionError, Problems, SelectionError, ShapeError, nearest
from nnopt_jax.parallel.meshes import check_mesh, named_shardings, shard_count, wait_if_simulated
from nnopt_jax.parallel.parameter import split_fully
from nnopt_jax.parallel.tensor import Rule, Ruled, by_annotation, by_graph, by_rules
from nnopt_jax.settings import Settings
from nnopt_jax.trace import Graph
from nnopt_jax.transform.validation import check_arrays, described
from nnopt_jax.tree.bit_counts import dtype_bits, tree_bits
from nnopt_jax.tree.devices import place
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.tree.select import Where, resolve

LEAST = 2**14
"""The number of bytes below which an array is not split, because gathering costs more."""


@dataclasses.dataclass(frozen=True)
class ShardRow:
    """The row of one leaf in the table of a plan.

    Args:
        path: the path of the leaf.
        form: the shape and dtype, or the fields of the node.
        spec: the spec of the dense array.
        reason: the reason for the spec.
        bytes: the bytes of the unsharded leaf.
        device_bytes: the bytes on one device.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> plan = nnopt.parallel.specs({"w": jnp.ones((8, 1024))}, nnopt.parallel.mesh(fsdp=8))
        >>> plan.rows[0].reason, plan.rows[0].device_bytes
        ('fsdp', 4096)
    """

    path: str
    form: str
    spec: PartitionSpec
    reason: str
    bytes: int
    device_bytes: int

    __repr__ = brief_fields


@dataclasses.dataclass(frozen=True, repr=False)
class Shards(Tabular):
    """A plan for splitting parameters over a mesh, for printing and for JSON.

    Args:
        mesh: the devices.
        params: the shapes of the parameters.
        specs: a tree with a `PartitionSpec` for every array between steps, the arrays inside of
            packed leaves included.
        used: the same tree for the use of parameters, without parameter parallelism.
        logical: like `specs`, for the dense arrays of the leaves, as `nnopt.state_specs` takes it.
        logical_used: like `used`, for the dense arrays of the leaves.
        fsdp: the mesh axis of parameter parallelism, or None.
        least: the number of bytes below which arrays are not split.
        rows: a row for each leaf.

    Example:
        >>> import jax
        >>> import nnopt_jax as nnopt
        >>> shapes = {
        ...     "bias": jax.ShapeDtypeStruct((512,), "float32"),
        ...     "kernel": jax.ShapeDtypeStruct((256, 512), "float32"),
        ... }
        >>> mesh = nnopt.parallel.mesh(fsdp=4, model=2)
        >>> print(nnopt.parallel.specs(shapes, mesh, [("kernel", (None, "model"))]))
        mesh fsdp=4 x model=2
        leaf    form              split        why                    bytes  a device
        bias    float32[512]      whole        below 16,384 bytes     2,048     2,048
        kernel  float32[256,512]  fsdp, model  rule 1, fsdp         524,288    65,536
        total                                  1 of 2 leaves split  526,336    67,584
    """

    mesh: Mesh | AbstractMesh
    params: Any
    specs: Any
    used: Any
    logical: Any
    logical_used: Any
    fsdp: str | None
    least: int
    rows: tuple[ShardRow, ...]

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        axes = ", ".join(f"{name}={size}" for name, size in self.mesh.shape.items())
        return f"{counted(len(self.rows), 'leaf', 'leaves')} over {axes}"

    @property
    def devices(self) -> Mesh:
        """The mesh, if it has devices.

        Raises:
            SelectionError: the plan was made for an `AbstractMesh`.
        """
        if isinstance(self.mesh, Mesh):
            return self.mesh
        raise SelectionError(
            "parallel.specs: this plan is of an AbstractMesh, which has no devices; plan with "
            "nnopt.parallel.mesh(...) to place arrays."
        )

    @property
    def shardings(self) -> Any:
        """The `NamedSharding` of every array, for `jax.jit` and `jax.device_put`."""
        return named_shardings(self.devices, self.specs)

    @property
    def bytes(self) -> int:
        """The bytes of all parameters."""
        return sum(row.bytes for row in self.rows)

    @property
    def device_bytes(self) -> int:
        """The bytes of the parameters on one device."""
        return sum(row.device_bytes for row in self.rows)

    def split_further(self, leaf: Any, spec: PartitionSpec | None = None) -> PartitionSpec:
        """Split an array that is not a parameter, such as a state, by parameter parallelism."""
        spec = PartitionSpec() if spec is None else spec
        if self.fsdp is None:
            return spec
        return split_fully(leaf, spec, self.mesh, self.fsdp, self.least)[0]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as dictionaries and lists."""
        rows = [dataclasses.asdict(row) | {"spec": list(row.spec)} for row in self.rows]
        return {"mesh": dict(self.mesh.shape), "fsdp": self.fsdp, "rows": rows}

    def __str__(self) -> str:
        """Return the plan as a table with a row for each leaf."""
        cells = [("leaf", "form", "split", "why", "bytes", "a device")]
        for row in self.rows:
            sizes = f"{row.bytes:,}", f"{row.device_bytes:,}"
            cells.append((row.path, row.form, _written(row.spec), row.reason, *sizes))
        split = sum(row.device_bytes < row.bytes for row in self.rows)
        why = f"{split} of {len(self.rows)} leaves split"
        cells.append(("total", "", "", why, f"{self.bytes:,}", f"{self.device_bytes:,}"))
        axes = " x ".join(f"{name}={size}" for name, size in self.mesh.shape.items())
        return "\n".join([f"mesh {axes}", *aligned(cells, numbers=2)])


def _written(spec: PartitionSpec) -> str:
    if not any(spec):
        return "whole"
    return ", ".join(
        "-" if entry is None else entry if isinstance(entry, str) else "+".join(entry)
        for entry in spec
    )


def specs(
    params: Any,
    mesh: Mesh | AbstractMesh,
    rules: Sequence[Rule] = (),
    *,
    annotations: Any = None,
    graph: Graph | None = None,
    model: str = "model",
    fsdp: str | None = "fsdp",
    where: Where | None = None,
    least: int = LEAST,
) -> Shards:
    """Plan how to split parameters over a mesh, without moving any.

    The first rule that matches a leaf determines its split, else the annotation of the model, else
    its graph (which splits hidden units and heads together). Parameter parallelism then splits the
    leaf along the largest free axis that is divisible, else along an axis that is already split. A
    leaf without any split is replicated, and the plan says why.

    Args:
        params: the parameters, dense or packed, or `jax.ShapeDtypeStruct`s in their place.
        mesh: the devices; an `AbstractMesh` for a plan without devices.
        rules: `(where, spec)` pairs for tensor parallelism; the spec is a `PartitionSpec`, a tuple
            of its entries, or None for a leaf that is replicated.
        annotations: a tree of the parameters' structure of `PartitionSpec` or None, such as
            `flax.linen.get_partition_spec` and `flax.nnx.get_partition_spec` return.
        graph: the result of `nnopt.graph(apply, params, *inputs)`: tensor parallelism without
            rules.
        model: the mesh axis of tensor parallelism by the graph, if the mesh has it.
        fsdp: the mesh axis of parameter parallelism, if the mesh has it; None for none. With
            `"stage"`, parameters outside of a pipeline are split over its stages, too.
        where: the leaves that parameter parallelism splits; by default all.
        least: the number of bytes below which arrays are not split.

    Returns:
        The plan.

    Raises:
        SelectionError: a rule or an annotation does not match a leaf, or `fsdp` is not an axis.
        ShapeError: rules or annotations name unknown axes, one axis twice or too many axes, or
            split an axis into unequal parts.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"dense": {"kernel": jnp.ones((256, 512))}}
        >>> mesh = nnopt.parallel.mesh(fsdp=8)
        >>> tuple(nnopt.parallel.specs(params, mesh).specs["dense"]["kernel"])
        (None, 'fsdp')
        >>> nnopt.parallel.specs(params, mesh, [("dens/*", (None, "fsdp"))])
        Traceback (most recent call last):
        nnopt_jax.errors.SelectionError: parallel.specs: rule 1 'dens/*' matched no leaf. Nearest: \
dense/kernel. 1 leaves considered; nnopt.tree.flatten(params) shows them, as does 'nnopt plan \
RECIPE --list'.
    """
    who = "parallel.specs"
    check_mesh(who, mesh)
    settings = Settings(who)
    settings.integer("least", least, 0)
    settings.done()
    if fsdp is not None and fsdp not in mesh.shape:
        if fsdp != "fsdp":
            raise SelectionError(f"{who}: fsdp={fsdp!r} is not an axis of the mesh: "
                                 f"{', '.join(mesh.shape)}.")  # fmt: skip
        fsdp = None
    leaves = flatten(params, is_node)
    check_arrays(who, leaves)
    ruled = by_graph(leaves, graph, mesh, model) if graph and model in mesh.shape else {}
    ruled |= by_annotation(leaves, annotations, mesh, who) if annotations is not None else {}
    ruled |= by_rules(leaves, rules, mesh, who)
    spread = set(leaves) if where is None else set(resolve(where, leaves, who))
    planned = {}
    for path, leaf in leaves.items():
        known = ruled.get(path, Ruled(PartitionSpec()))
        chosen = fsdp if path in spread and not known.pinned else None
        planned[path] = _plan_leaf(path, leaf, known, mesh, chosen, least)
    shapes = jax.eval_shape(lambda x: x, params)
    trees = {
        name: unflatten(params, {p: parts[name] for p, (parts, _) in planned.items()}, is_node)
        for name in ("specs", "used", "logical", "logical_used")
    }
    rows = tuple(row for _, row in planned.values())
    return Shards(mesh, shapes, **trees, fsdp=fsdp, least=least, rows=rows)


def _plan_leaf(
    path: str, leaf: Any, known: Ruled, mesh: Mesh | AbstractMesh, fsdp: str | None, least: int
) -> tuple[dict[str, Any], ShardRow]:
    """Return the specs of a leaf, by field of `Shards`, and its row in the plan."""
    used = field_specs(leaf, known.spec, mesh)  # pyright: ignore[reportArgumentType]
    arrays, structure = jax.tree.flatten(leaf)

    def split(array: Any, spec: PartitionSpec) -> tuple[PartitionSpec, str]:
        if fsdp is None:
            return spec, ""
        return split_fully(array, spec, mesh, fsdp, least)

    ways = [split(*pair) for pair in zip(arrays, structure.flatten_up_to(used), strict=True)]
    reasons = [reason for _, reason in ways]
    said = [known.reason] if known.reason else []
    if any(known.spec) and not any(any(spec) for spec in structure.flatten_up_to(used)):
        said[0] += ", which no packed array can follow"
    if fsdp in reasons:
        some = f" of {reasons.count(fsdp)} of {len(arrays)} arrays" if len(arrays) > 1 else ""
        said.append(f"{fsdp}{some}")
    elif not said:
        said.append(max(reasons, key=len, default="") or "no rule")
    resting = jax.tree.unflatten(structure, [spec for spec, _ in ways])
    logical = split(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), known.spec)[0]
    specs = {"specs": resting, "used": used, "logical": logical, "logical_used": known.spec}
    sizes = -(-tree_bits(leaf) // 8), bytes_per_device(leaf, resting, mesh)
    return specs, ShardRow(path, summary(leaf), logical, ", ".join(said), *sizes)


def check_plan(who: str, plan: Any) -> None:
    """Raise if a value is not a plan."""
    if not isinstance(plan, Shards):
        raise CompositionError(
            f"{who}: plan is {described(plan)}; give what nnopt.parallel.specs(params, mesh) "
            "returns."
        )


def bytes_per_device(tree: Any, specs: Any, mesh: Mesh | AbstractMesh) -> int:
    """Return the bytes of a tree on one device."""
    arrays, structure = jax.tree.flatten(tree)
    bits = sum(
        math.prod(x.shape) * dtype_bits(x.dtype) // shard_count(mesh, spec)
        for x, spec in zip(arrays, structure.flatten_up_to(specs), strict=True)
    )
    return -(-bits // 8)


def shard(params: Any, plan: Shards) -> Any:
    """Place parameters on the devices of a plan.

    Args:
        params: arrays of NumPy or JAX, on any devices, of the shapes of the plan. With several
            processes each gives the same values.
        plan: the result of `nnopt.parallel.specs`.

    Returns:
        The same tree; each device holds its share.

    Raises:
        ShapeError: leaves are missing, are too many, or have other shapes; all are listed.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"kernel": jnp.ones((8, 1024))}
        >>> plan = nnopt.parallel.specs(params, nnopt.parallel.mesh(fsdp=8))
        >>> nnopt.parallel.shard(params, plan)["kernel"].addressable_shards[0].data.shape
        (8, 128)
    """
    check_planned("parallel.shard", params, plan)
    return wait_if_simulated(plan.devices, place(params, plan.shardings))


def sharded_init(init: Callable[..., Any], plan: Shards) -> Callable[..., Any]:
    """Compile an initializer, so that no device ever holds whole parameters.

    Args:
        init: the function that makes the parameters.
        plan: the plan of `jax.eval_shape(init, ...)`.

    Returns:
        `init`, compiled; its result is split as the plan says.

    Example:
        >>> import jax
        >>> import nnopt_jax as nnopt
        >>> init = lambda key: {"kernel": jax.random.normal(key, (8, 1024))}
        >>> key = jax.random.key(0)
        >>> plan = nnopt.parallel.specs(jax.eval_shape(init, key), nnopt.parallel.mesh(fsdp=8))
        >>> nnopt.parallel.sharded_init(init, plan)(key)["kernel"].sharding.shard_shape((8, 1024))
        (8, 128)
    """
    return jax.jit(init, out_shardings=plan.shardings)


def check_planned(who: str, params: Any, plan: Shards) -> None:
    """Raise if parameters do not have the paths, shapes and dtypes of a plan."""
    check_plan(who, plan)
    wanted, given = flatten(plan.params, is_node), flatten(params, is_node)
    problems = Problems(who)
    for path in wanted.keys() - given.keys():
        problems.add(path, f"is in the plan and not in the parameters.{nearest(path, given)}")
    for path in given.keys() - wanted.keys():
        problems.add(path, f"is not in the plan.{nearest(path, wanted)} Plan again with specs()")
    for path in wanted.keys() & given.keys():
        if summary(wanted[path]) != summary(given[path]):
            problems.add(path, f"is {summary(given[path])}, planned for {summary(wanted[path])}; "
                               "plan again with specs()")  # fmt: skip
    problems.found.sort()
    problems.raise_as(ShapeError)
