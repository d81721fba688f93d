"""Nodes: small frozen pytrees, each of which stands for the dense array of a parameter."""

from nnopt_jax.arrays.adapted import Normalized, Sum
from nnopt_jax.arrays.codebooks import Codebook, SoftCodebook
from nnopt_jax.arrays.ell import ELL, BlockELL
from nnopt_jax.arrays.factored import Factored
from nnopt_jax.arrays.index_layouts import CSR, DeltaIndex, SparseLayout
from nnopt_jax.arrays.input_quantized import InputQuantized
from nnopt_jax.arrays.integer_quantized import Quantized
from nnopt_jax.arrays.lookup_quantized import LookupQuantized
from nnopt_jax.arrays.mask_format import Format, smallest_support
from nnopt_jax.arrays.masked import Masked
from nnopt_jax.arrays.node_description import abstract, check, describe
from nnopt_jax.arrays.nodes import Node, is_node, materialize, node
from nnopt_jax.arrays.packed_integers import Bits, PackedTernary
from nnopt_jax.arrays.pattern_layouts import BSR, NMIndex
from nnopt_jax.arrays.refinement import Slot, refine, slots
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.arrays.scales import Powers, UnevenGroups
from nnopt_jax.arrays.soft_thresholded import SoftThresholded
from nnopt_jax.arrays.sparse_array import Sparse
from nnopt_jax.arrays.storage import store
from nnopt_jax.errors import former_names

__all__ = [
    "BSR", "CSR", "ELL", "Bits", "BlockELL", "Codebook", "DeltaIndex", "Factored", "Format",
    "InputQuantized", "LookupQuantized", "Masked", "NMIndex", "Node", "Normalized", "PackedTernary",
    "Powers", "Quantized", "Reshaped", "Slot", "SoftCodebook", "SoftThresholded", "Sparse",
    "SparseLayout", "Sum", "UnevenGroups", "abstract", "check", "describe", "is_node",
    "materialize", "node", "refine", "slots", "smallest_support", "store",
]  # fmt: skip

__getattr__ = former_names(
    "nnopt_jax.arrays",
    {
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
    },
)
