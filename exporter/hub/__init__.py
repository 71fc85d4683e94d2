"""Downloads from the hub and its mirrors."""
