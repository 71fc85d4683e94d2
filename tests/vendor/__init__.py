"""Tests of `vendor`: a miniature llama.cpp, a local package index, real cmake and ninja."""
