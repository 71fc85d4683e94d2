"""Ollama's API: its requests, answers and lists of models."""
