"""The type of each tensor, and the quantization of its rows."""
