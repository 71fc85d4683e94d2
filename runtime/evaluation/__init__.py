"""Measures models on a user's data: their answers, how good they are, and how they differ."""
