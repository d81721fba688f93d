"""Integer quantization: codes of 8 and 16 bits."""
