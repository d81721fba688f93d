"""Small trainable additions to weights that stay."""
