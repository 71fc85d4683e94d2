"""Merges adapters into a base: planned by names and shapes, applied tensor by tensor."""
