"""Publishes GGUFs on a hub: which files belong together, and the card that describes them."""
