"""Knowledge transfer: parameters, structure, and both mixed."""

from nnopt_jax.transfer.distill.attention import (
    attention_loss as attention_loss,
    attention_map as attention_map,
)
from nnopt_jax.transfer.distill.hints import (
    hint_loss as hint_loss,
    hint_regressor as hint_regressor,
)
from nnopt_jax.transfer.distill.logits import distillation_loss as distillation_loss
from nnopt_jax.transfer.mixed import (
    Model as Model,
    load_model as load_model,
    load_structure as load_structure,
    save_model as save_model,
)
from nnopt_jax.transfer.parameter.adapters.adapter_file import (
    load_adapter as load_adapter,
    save_adapter as save_adapter,
)
from nnopt_jax.transfer.parameter.adapters.frozen import freeze as freeze
from nnopt_jax.transfer.parameter.adapters.low_rank_adapters import lora as lora
from nnopt_jax.transfer.parameter.adapters.weight_decomposed import dora as dora
from nnopt_jax.transfer.parameter.averaging import soup as soup
from nnopt_jax.transfer.parameter.graft import rules as rules
from nnopt_jax.transfer.parameter.graft.report import GraftReport as GraftReport
from nnopt_jax.transfer.parameter.graft.surgery import Grafted as Grafted, graft as graft
from nnopt_jax.transfer.parameter.rates import (
    Rates as Rates,
    labels as labels,
    layerwise_rates as layerwise_rates,
)
from nnopt_jax.transfer.parameter.spherical import slerp as slerp
from nnopt_jax.transfer.parameter.task_vectors import task_arithmetic as task_arithmetic
from nnopt_jax.transfer.parameter.ties_merging import ties as ties
from nnopt_jax.transfer.structure.captured_program import capture as capture
from nnopt_jax.transfer.structure.deepening import deepen as deepen
from nnopt_jax.transfer.structure.growth import grow as grow
from nnopt_jax.transfer.structure.layers import (
    layer_map as layer_map,
    select_layers as select_layers,
    stack_layers as stack_layers,
    unstack_layers as unstack_layers,
)
from nnopt_jax.transfer.structure.structure import Structure as Structure
from nnopt_jax.transfer.structure.widening import widen as widen
