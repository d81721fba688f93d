"""Expression nodes: a parameter is an array, or a small frozen pytree that stands for one."""

from nnopt_jax.arrays.base import (
    Node as Node,
    is_node as is_node,
    materialize as materialize,
    node as node,
)
from nnopt_jax.arrays.bits import Bits as Bits
from nnopt_jax.arrays.codebook import Codebook as Codebook
from nnopt_jax.arrays.factored import Factored as Factored
from nnopt_jax.arrays.gathered import Gathered as Gathered, GatheredBlocks as GatheredBlocks
from nnopt_jax.arrays.input_quantized import InputQuantized as InputQuantized
from nnopt_jax.arrays.layout import lay_out as lay_out
from nnopt_jax.arrays.levels import Levels as Levels
from nnopt_jax.arrays.manifest import abstract as abstract, check as check, describe as describe
from nnopt_jax.arrays.masked import Masked as Masked
from nnopt_jax.arrays.normalized import Normalized as Normalized
from nnopt_jax.arrays.powers import Powers as Powers
from nnopt_jax.arrays.quantized import Quantized as Quantized
from nnopt_jax.arrays.reshaped import Reshaped as Reshaped
from nnopt_jax.arrays.shrunk import Shrunk as Shrunk
from nnopt_jax.arrays.slots import Slot as Slot, refine as refine, slots as slots
from nnopt_jax.arrays.soft_codebook import SoftCodebook as SoftCodebook
from nnopt_jax.arrays.sparse import Sparse as Sparse
from nnopt_jax.arrays.store import store as store
from nnopt_jax.arrays.sum_ import Sum as Sum
from nnopt_jax.arrays.supports import (
    Blocks as Blocks,
    Format as Format,
    Gaps as Gaps,
    Groups as Groups,
    Rows as Rows,
    Support as Support,
    smallest_support as smallest_support,
)
from nnopt_jax.arrays.trits import Trits as Trits
from nnopt_jax.arrays.uneven_groups import UnevenGroups as UnevenGroups
