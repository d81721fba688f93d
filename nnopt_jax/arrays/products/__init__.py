"""Products with packed weights: what hooks of nodes are told, and the arithmetic they share."""
