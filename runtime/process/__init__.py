"""Processes and addresses: run folders, and children that end with their parent."""
