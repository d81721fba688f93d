"""Knowledge transfer between networks: of parameters, of structure, or of whole models."""

from nnopt_jax.transfer.adapter_file import load_adapter, save_adapter
from nnopt_jax.transfer.adapters import dora, freeze, lora
from nnopt_jax.transfer.distillation import (
    attention_loss,
    attention_map,
    distillation_loss,
    hint_loss,
    hint_regressor,
)
from nnopt_jax.transfer.merging import slerp, soup, task_arithmetic, ties
from nnopt_jax.transfer.mixed import Model, load_model, load_structure, save_model
from nnopt_jax.transfer.rates import Rates, labels, layerwise_rates
from nnopt_jax.transfer.structure.captured_program import capture
from nnopt_jax.transfer.structure.growth import grow
from nnopt_jax.transfer.structure.layers import (
    deepen,
    layer_map,
    select_layers,
    stack_layers,
    unstack_layers,
)
from nnopt_jax.transfer.structure.structure import Structure
from nnopt_jax.transfer.structure.widening import widen
from nnopt_jax.transfer.surgery import rules
from nnopt_jax.transfer.surgery.grafting import Grafted, GraftReport, graft

__all__ = [
    "GraftReport", "Grafted", "Model", "Rates", "Structure", "attention_loss", "attention_map",
    "capture", "deepen", "distillation_loss", "dora", "freeze", "graft", "grow", "hint_loss",
    "hint_regressor", "labels", "layer_map", "layerwise_rates", "load_adapter", "load_model",
    "load_structure", "lora", "rules", "save_adapter", "save_model", "select_layers", "slerp",
    "soup", "stack_layers", "task_arithmetic", "ties", "unstack_layers", "widen",
]  # fmt: skip
