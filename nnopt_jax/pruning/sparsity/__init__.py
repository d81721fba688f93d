"""Pruning by sparsity: penalties and thresholds driven to a target, and measured sparsity."""
