"""The HTTP server: who may ask, which child answers, and when it is whose turn."""
