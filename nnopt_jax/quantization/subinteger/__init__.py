"""Weights of two to seven bits: grids in groups, small floats, learned steps."""
