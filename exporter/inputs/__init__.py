"""What an export begins with: adapters and bases, found, opened and named; no value is read."""
