"""Downloads from the hub and its mirrors.

Our own and not huggingface_hub's, which asks one endpoint for a file: here several endpoints serve
the ranges of one file, and what one of them fails at is fetched from another.
"""
