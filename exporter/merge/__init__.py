"""Adapters merged into a base: planned by names and shapes, carried out tensor by tensor."""
