"""The llama.cpp that decant built: its tools, its vocabularies, its converter's packages."""
