"""Lays merged tensors out as GGUF with llama.cpp's converter, before any value is read."""
