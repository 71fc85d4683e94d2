"""lm-evaluation-harness against `decant serve`, beside its own `hf` model."""
