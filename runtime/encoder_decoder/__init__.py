"""Encoder-decoder models, which llama-server does not run, served as llama-server serves others."""
