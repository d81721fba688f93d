"""Weights of one bit, and of three values."""
