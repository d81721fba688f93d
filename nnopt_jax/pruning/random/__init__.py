"""Pruning at random: random masks, and sparse training that drops weights and grows others."""
