"""The terminal of `decant chat`."""
