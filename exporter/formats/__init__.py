"""The formats of a result: GGUF, safetensors, GGUF adapter, Ollama, vLLM."""
