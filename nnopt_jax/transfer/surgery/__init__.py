"""Weight surgery: parameters of one model, put into another."""
