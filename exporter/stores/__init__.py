"""Models that other programs keep on this machine: Ollama, LM Studio, the hub's cache."""
