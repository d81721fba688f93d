"""Former folder of sparse layouts, for imports in pruning that move next."""
