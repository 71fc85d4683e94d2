"""Log-likelihoods against transformers and peft."""
