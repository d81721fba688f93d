"""Weight surgery: copying parameters of one model into another."""
