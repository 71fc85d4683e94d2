"""GGUF files as input: bases, and adapters under a GGUF's names. They need the converter."""
