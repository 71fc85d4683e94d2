"""Verifies a GGUF against the base and the adapters it was made from."""
