"""Parameters that come from elsewhere."""
