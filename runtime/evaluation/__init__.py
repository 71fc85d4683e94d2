"""Measures models on a user's data: what each answers, how good that is, and whether it differs."""
