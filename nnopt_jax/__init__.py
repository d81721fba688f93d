"""Neural-network optimization as pure functions over parameter pytrees.

Compression, quantization, pruning, knowledge transfer and parallelism are transforms that compose
in any order, train in the user's own loop, and save files of the size that they report.
"""

from nnopt_jax import (
    arrays as arrays,
    artifact as artifact,
    compression as compression,
    errors as errors,
    parallel as parallel,
    pruning as pruning,
    quantization as quantization,
    transfer as transfer,
    tree as tree,
)
from nnopt_jax.arrays.nodes import materialize as materialize
from nnopt_jax.arrays.prepacking import prepack as prepack
from nnopt_jax.artifact import inspect as inspect, load as load, save as save
from nnopt_jax.ops.axis_roles import Axes as Axes
from nnopt_jax.trace import (
    Cost as Cost,
    Graph as Graph,
    Observed as Observed,
    OnPacked as OnPacked,
    graph as graph,
    on_packed as on_packed,
)
from nnopt_jax.transform import (
    Grads as Grads,
    Plan as Plan,
    State as State,
    Trainable as Trainable,
    Transform as Transform,
    at as at,
    chain as chain,
    packed_specs as packed_specs,
    plan as plan,
    state_specs as state_specs,
    step as step,
    trainable as trainable,
    value_and_grad as value_and_grad,
)

__version__ = "0.1.0"

__getattr__ = errors.former_names(
    "nnopt_jax",
    {
        "Groups": "nnopt.trace.CoupledAxes: nnopt.graph(apply, params, *inputs).coupled",
        "cost": "nnopt.graph(apply, params, *inputs).cost()",
        "groups": "nnopt.graph(apply, params, *inputs).coupled",
        "observe": "nnopt.graph(apply, params, *inputs).observe(params, batches, names)",
        "shrink": "nnopt.graph(apply, params, *inputs).shrink(params, keep)",
        "statistics": "nnopt.graph(loss, params, *batch).observe(params, batches, tx.needs)",
        "uses": "nnopt.graph(apply, params, *inputs).uses",
    },
)
