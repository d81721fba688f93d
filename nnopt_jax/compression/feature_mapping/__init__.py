"""Feature mapping: weights and inputs in spaces of fewer dimensions."""
