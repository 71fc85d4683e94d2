"""The formats of `decant export --to`: one file each, listed in registry.py."""
