"""Bases that are stored quantized, dequantized when they are read."""
