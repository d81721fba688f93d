"""The table of JAX's primitives, which describes each one by factors and places."""

from nnopt_jax.trace.primitives.draft import (
    Draft as Draft,
    axes as axes,
    opaque_rule as opaque_rule,
    shape_of as shape_of,
)
from nnopt_jax.trace.primitives.elementwise import (
    elementwise_rule as elementwise_rule,
    identity_rule as identity_rule,
)
from nnopt_jax.trace.primitives.places import (
    ONE as ONE,
    Dim as Dim,
    Factor as Factor,
    Place as Place,
    RuntimeStart as RuntimeStart,
    axis as axis,
)
from nnopt_jax.trace.primitives.primitive_names import named as named
from nnopt_jax.trace.primitives.primitive_rule import (
    Flat as Flat,
    Flops as Flops,
    Kind as Kind,
    OpRule as OpRule,
    Same as Same,
    factors_of as factors_of,
)
from nnopt_jax.trace.primitives.primitive_table import (
    TABLE as TABLE,
    Table as Table,
    programs_of as programs_of,
    rule_of as rule_of,
)
from nnopt_jax.trace.primitives.programs import (
    Flow as Flow,
    Inner as Inner,
    MeshCut as MeshCut,
    Programs as Programs,
)
