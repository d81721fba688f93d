"""Pure array functions: no trees, no state; safe under jit, vmap and grad, and on meshes."""

from nnopt_jax.ops.bit_packing import (
    pack_bits as pack_bits,
    pack_ternary as pack_ternary,
    packed_size as packed_size,
    unpack_bits as unpack_bits,
    unpack_ternary as unpack_ternary,
)
from nnopt_jax.ops.block_formats import (
    block_count as block_count,
    block_largest as block_largest,
    block_mean as block_mean,
    in_units as in_units,
    power_of_two as power_of_two,
    q4_0_codes as q4_0_codes,
    q4_0_step as q4_0_step,
    q8_0_codes as q8_0_codes,
    q8_0_step as q8_0_step,
    shared_exponent as shared_exponent,
    stored_scale as stored_scale,
)
from nnopt_jax.ops.checksums import checksum as checksum
from nnopt_jax.ops.clustering import kmeans as kmeans
from nnopt_jax.ops.factorization import (
    factorize as factorize,
    rank_for_energy as rank_for_energy,
    svd as svd,
)
from nnopt_jax.ops.gradient_estimators import (
    gate as gate,
    round_clip as round_clip,
    scale_gradient as scale_gradient,
    straight_through as straight_through,
)
from nnopt_jax.ops.grid import (
    dequantize as dequantize,
    expand as expand,
    fit_grid as fit_grid,
    grid_of_range as grid_of_range,
    integer_range as integer_range,
    quantize as quantize,
)
from nnopt_jax.ops.lookup_tables import (
    assign as assign,
    level_values as level_values,
    nearest_level as nearest_level,
)
from nnopt_jax.ops.masks import keep_n_of_m as keep_n_of_m
from nnopt_jax.ops.proximal_operators import (
    block_rms as block_rms,
    block_soft_threshold as block_soft_threshold,
    hoyer_scale as hoyer_scale,
    shrink as shrink,
    soft_threshold as soft_threshold,
)
from nnopt_jax.ops.range_search import mse_range as mse_range, percentile_range as percentile_range
from nnopt_jax.ops.soft_clustering import soft_assign as soft_assign, soft_kmeans as soft_kmeans
from nnopt_jax.ops.threshold import (
    kth_largest as kth_largest,
    top_k_mask as top_k_mask,
    top_k_masks as top_k_masks,
)
