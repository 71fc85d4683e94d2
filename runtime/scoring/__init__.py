"""Log-likelihoods of given texts, which llama-server does not compute."""
