"""Products with packed weights: descriptions for the hooks of nodes, and shared arithmetic."""
