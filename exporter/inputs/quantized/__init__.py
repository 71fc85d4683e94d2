"""Bases that are stored quantized and dequantized when they are read."""
