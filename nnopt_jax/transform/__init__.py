"""The protocol of transforms: init, encode, update, and what is derived from them."""

from nnopt_jax.transform.base import Grads as Grads, State as State, Transform as Transform
from nnopt_jax.transform.combine import at as at, chain as chain
from nnopt_jax.transform.leaves import (
    Start as Start,
    Update as Update,
    matrices as matrices,
    refresh_when as refresh_when,
    wrapping as wrapping,
)
from nnopt_jax.transform.planning import Plan as Plan, PlanRow as PlanRow, plan as plan
from nnopt_jax.transform.slotwise import refining as refining
from nnopt_jax.transform.state_sharding import (
    packed_specs as packed_specs,
    state_specs as state_specs,
)
from nnopt_jax.transform.together import refining_together as refining_together
from nnopt_jax.transform.training import (
    Trainable as Trainable,
    step as step,
    trainable as trainable,
    value_and_grad as value_and_grad,
)
