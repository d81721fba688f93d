"""The table of JAX's primitives: how the operands and outcomes of each are indexed."""

from nnopt_jax.errors import former_names
from nnopt_jax.trace.primitives.draft import Draft, axes, opaque_rule, shape_of
from nnopt_jax.trace.primitives.elementwise import elementwise_rule, identity_rule
from nnopt_jax.trace.primitives.places import ONE, Dim, Factor, Place, RuntimeStart, axis
from nnopt_jax.trace.primitives.primitive_names import named
from nnopt_jax.trace.primitives.primitive_rule import Flat, Flops, Kind, OpRule, Same, factors_of
from nnopt_jax.trace.primitives.primitive_table import TABLE, Table, programs_of, rule_of
from nnopt_jax.trace.primitives.programs import Flow, Inner, MeshCut, Programs

__all__ = [
    "ONE", "TABLE", "Dim", "Draft", "Factor", "Flat", "Flops", "Flow", "Inner", "Kind", "MeshCut",
    "OpRule", "Place", "Programs", "RuntimeStart", "Same", "Table", "axes", "axis",
    "elementwise_rule", "factors_of", "identity_rule", "named", "opaque_rule", "programs_of",
    "rule_of", "shape_of",
]  # fmt: skip

_HERE = "nnopt_jax.trace.primitives"
__getattr__ = former_names(_HERE, {"Rule": f"{_HERE}.OpRule", "Start": f"{_HERE}.RuntimeStart"})
