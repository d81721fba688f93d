"""Pytrees only: names of leaves, selectors, differences and honest sizes."""

from nnopt_jax.tree.bit_counts import dtype_bits as dtype_bits, tree_bits as tree_bits
from nnopt_jax.tree.paths import (
    IsLeaf as IsLeaf,
    diff as diff,
    flatten as flatten,
    path_string as path_string,
    unflatten as unflatten,
)
from nnopt_jax.tree.select import (
    Selector as Selector,
    Where as Where,
    resolve as resolve,
    selector as selector,
)
