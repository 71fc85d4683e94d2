"""Log-likelihoods of texts that are given, which llama-server does not compute."""
