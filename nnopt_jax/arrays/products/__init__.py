"""Products with packed weights: descriptions of products for node hooks, and shared arithmetic."""
