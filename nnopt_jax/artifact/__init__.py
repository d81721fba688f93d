"""The file that is really small: an entropy coder, a container, a loader that needs no model."""

from nnopt_jax.artifact.file import load as load, save as save
from nnopt_jax.artifact.inspection import (
    Inspection as Inspection,
    Row as Row,
    inspect as inspect,
    sizes as sizes,
)
