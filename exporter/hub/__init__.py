"""Downloads from the hub and its mirrors.

It does not use huggingface_hub's downloader, which asks one endpoint for a file. Here several
endpoints serve the ranges of one file, and another endpoint serves a range that one fails to send.
"""
