"""The formats that `decant export --to` writes: one file each, listed in registry.py."""
