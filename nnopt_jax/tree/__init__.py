"""Functions of pytrees: names of leaves, selectors, differences, and sizes in bits."""

from nnopt_jax.tree.bit_counts import dtype_bits, tree_bits
from nnopt_jax.tree.paths import IsLeaf, diff, flatten, path_string, unflatten
from nnopt_jax.tree.select import Selector, Where, resolve, selector

__all__ = [
    "IsLeaf", "Selector", "Where", "diff", "dtype_bits", "flatten", "path_string", "resolve",
    "selector", "tree_bits", "unflatten",
]  # fmt: skip
