"""llama.cpp's own tests of its server, run against llama-server and against decant's gateway."""
