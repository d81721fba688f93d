"""Neural-network optimization as pure functions over parameter pytrees.

Compression, quantization, pruning, knowledge transfer and parallelism: transforms that compose in
any order, train in a user's own loop, and store what they say they store.
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
from nnopt_jax.arrays.base import materialize as materialize
from nnopt_jax.artifact import inspect as inspect, load as load, save as save
from nnopt_jax.ops.axes import Axes as Axes
from nnopt_jax.trace import (
    Cost as Cost,
    Groups as Groups,
    Observed as Observed,
    OnPacked as OnPacked,
    cost as cost,
    groups as groups,
    observe as observe,
    on_packed as on_packed,
    shrink as shrink,
    uses as uses,
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
    statistics as statistics,
    step as step,
    trainable as trainable,
    value_and_grad as value_and_grad,
)

__version__ = "0.1.0"
