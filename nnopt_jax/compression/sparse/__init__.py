"""Sparse representation: only what is kept is stored, and trained."""
