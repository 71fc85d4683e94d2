"""Serves encoder-decoder models, which llama-server cannot run, over llama-server's routes."""
