"""Uploads to a hub, through huggingface_hub, in one commit that appears whole or not at all."""
