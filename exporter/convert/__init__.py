"""Merged tensors laid out as GGUF by llama.cpp's converter, before a value is read."""
