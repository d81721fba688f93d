"""Rules for `transfer.graft`: names, layouts, and shapes."""

from nnopt_jax.transfer.parameter.graft.layout_rules import (
    fuse as fuse,
    reshape as reshape,
    split as split,
    stack as stack,
    transpose as transpose,
    unstack as unstack,
)
from nnopt_jax.transfer.parameter.graft.names import (
    adapt as adapt,
    drop as drop,
    keep as keep,
    rename as rename,
)
from nnopt_jax.transfer.parameter.graft.rule import Rule as Rule
from nnopt_jax.transfer.parameter.graft.shapes import (
    corner as corner,
    grid as grid,
    rows as rows,
)
