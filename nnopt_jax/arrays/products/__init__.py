"""Products with packed weights: their description for the hooks of nodes, and shared arithmetic."""
