"""Pruning by importance: a score for each weight, the greatest are kept."""
