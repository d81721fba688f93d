"""Model parallelism: single layers split (tensor), and layers one after another (pipeline)."""
