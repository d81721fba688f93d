"""The file that is really small: an entropy coder, a container, a loader that needs no model."""
