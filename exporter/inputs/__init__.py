"""The inputs of an export: finds, opens and names adapters and bases; reads no values."""
