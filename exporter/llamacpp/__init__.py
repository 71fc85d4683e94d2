"""The build of llama.cpp: its tools, vocabularies and Python packages."""
