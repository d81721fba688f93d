"""Pure array functions: no trees, no state; safe under jit, vmap and grad, and on meshes."""

from nnopt_jax.ops.bits import pack_bits as pack_bits
from nnopt_jax.ops.bits import packed_size as packed_size
from nnopt_jax.ops.bits import unpack_bits as unpack_bits
from nnopt_jax.ops.grid import dequantize as dequantize
from nnopt_jax.ops.grid import expand as expand
from nnopt_jax.ops.grid import fit_grid as fit_grid
from nnopt_jax.ops.grid import integer_range as integer_range
from nnopt_jax.ops.grid import quantize as quantize
from nnopt_jax.ops.rounding import round_clip as round_clip
from nnopt_jax.ops.straight_through import gate as gate
from nnopt_jax.ops.straight_through import straight_through as straight_through
from nnopt_jax.ops.threshold import kth_largest as kth_largest
from nnopt_jax.ops.threshold import top_k_mask as top_k_mask
from nnopt_jax.ops.threshold import top_k_masks as top_k_masks
