"""Supports: what stands for the mask of a sparse array, in few bits."""

from nnopt_jax.arrays.supports.base import Support as Support
from nnopt_jax.arrays.supports.blocks import Blocks as Blocks
from nnopt_jax.arrays.supports.choose import (
    Format as Format,
    parse_format as parse_format,
    smallest_support as smallest_support,
    support_of as support_of,
)
from nnopt_jax.arrays.supports.gaps import Gaps as Gaps
from nnopt_jax.arrays.supports.groups import Groups as Groups
from nnopt_jax.arrays.supports.rows import Rows as Rows
