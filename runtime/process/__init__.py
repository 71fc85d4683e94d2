"""Processes and addresses: run folders, and child processes that end with their parent."""
