"""Nodes: a parameter is an array, or a small frozen pytree that stands for one."""

from nnopt_jax.arrays.adapted import Normalized as Normalized, Sum as Sum
from nnopt_jax.arrays.codebooks import Codebook as Codebook, SoftCodebook as SoftCodebook
from nnopt_jax.arrays.ell import ELL as ELL, BlockELL as BlockELL
from nnopt_jax.arrays.factored import Factored as Factored
from nnopt_jax.arrays.index_layouts import (
    CSR as CSR,
    DeltaIndex as DeltaIndex,
    SparseLayout as SparseLayout,
)
from nnopt_jax.arrays.input_quantized import InputQuantized as InputQuantized
from nnopt_jax.arrays.integer_quantized import Quantized as Quantized
from nnopt_jax.arrays.lookup_quantized import LookupQuantized as LookupQuantized
from nnopt_jax.arrays.mask_format import Format as Format, smallest_support as smallest_support
from nnopt_jax.arrays.masked import Masked as Masked
from nnopt_jax.arrays.node_description import (
    abstract as abstract,
    check as check,
    describe as describe,
)
from nnopt_jax.arrays.nodes import (
    Node as Node,
    is_node as is_node,
    materialize as materialize,
    node as node,
)
from nnopt_jax.arrays.packed_integers import Bits as Bits, PackedTernary as PackedTernary
from nnopt_jax.arrays.pattern_layouts import BSR as BSR, NMIndex as NMIndex
from nnopt_jax.arrays.refinement import Slot as Slot, refine as refine, slots as slots
from nnopt_jax.arrays.reshaped import Reshaped as Reshaped
from nnopt_jax.arrays.scales import Powers as Powers, UnevenGroups as UnevenGroups
from nnopt_jax.arrays.soft_thresholded import SoftThresholded as SoftThresholded
from nnopt_jax.arrays.sparse_array import Sparse as Sparse
from nnopt_jax.arrays.storage import store as store

_RENAMED = {
    "Blocks": "nnopt.arrays.BSR",
    "Gaps": "nnopt.arrays.DeltaIndex",
    "Gathered": "nnopt.arrays.ELL",
    "GatheredBlocks": "nnopt.arrays.BlockELL",
    "Groups": "nnopt.arrays.NMIndex",
    "Levels": "nnopt.arrays.LookupQuantized",
    "Rows": "nnopt.arrays.CSR",
    "Shrunk": "nnopt.arrays.SoftThresholded",
    "Support": "nnopt.arrays.SparseLayout",
    "Trits": "nnopt.arrays.PackedTernary",
    "lay_out": "nnopt.prepack(packed, where=..., dense=...)",
}


def __getattr__(name: str) -> object:
    """Say what became of a name."""
    if name in _RENAMED:
        raise AttributeError(f"nnopt.arrays.{name} is now {_RENAMED[name]}")
    raise AttributeError(f"module 'nnopt_jax.arrays' has no attribute {name!r}")
