"""Functions of parameters, on packed parameters."""
