"""Execution of functions of arrays on packed parameters."""
