"""Coding tools with a served model: their settings, the server, and the tool's process."""
