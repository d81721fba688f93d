"""Pure array functions: no trees, no state; safe under jit, vmap and grad, and on meshes."""

from nnopt_jax.ops.assign import assign as assign
from nnopt_jax.ops.bits import (
    pack_bits as pack_bits,
    packed_size as packed_size,
    unpack_bits as unpack_bits,
)
from nnopt_jax.ops.checksum import checksum as checksum
from nnopt_jax.ops.grid import (
    dequantize as dequantize,
    expand as expand,
    fit_grid as fit_grid,
    grid_of_range as grid_of_range,
    integer_range as integer_range,
    quantize as quantize,
)
from nnopt_jax.ops.kmeans import kmeans as kmeans
from nnopt_jax.ops.ranges import mse_range as mse_range, percentile_range as percentile_range
from nnopt_jax.ops.rounding import round_clip as round_clip
from nnopt_jax.ops.soft_kmeans import soft_assign as soft_assign, soft_kmeans as soft_kmeans
from nnopt_jax.ops.straight_through import gate as gate, straight_through as straight_through
from nnopt_jax.ops.svd import (
    factorize as factorize,
    rank_for_energy as rank_for_energy,
    svd as svd,
)
from nnopt_jax.ops.threshold import (
    kth_largest as kth_largest,
    top_k_mask as top_k_mask,
    top_k_masks as top_k_masks,
)
