"""The protocol of transforms: init, encode, update, and the functions derived from them."""

from nnopt_jax.transform.base import Grads, State, Transform
from nnopt_jax.transform.builders import wrapping
from nnopt_jax.transform.combine import at, chain
from nnopt_jax.transform.leaves import Start, Update, matrices, refresh_when
from nnopt_jax.transform.planning import Plan, PlanRow, plan
from nnopt_jax.transform.slotwise import refining, refining_together
from nnopt_jax.transform.state_sharding import packed_specs, state_specs
from nnopt_jax.transform.training import Trainable, step, trainable, value_and_grad

__all__ = [
    "Grads", "Plan", "PlanRow", "Start", "State", "Trainable", "Transform", "Update", "at",
    "chain", "matrices", "packed_specs", "plan", "refining", "refining_together", "refresh_when",
    "state_specs", "step", "trainable", "value_and_grad", "wrapping",
]  # fmt: skip
