"""Layers computed on other machines, over llama.cpp's RPC."""
