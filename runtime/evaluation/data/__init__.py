"""Reads a user's data: files and hub datasets, in the layouts that trainers read."""
