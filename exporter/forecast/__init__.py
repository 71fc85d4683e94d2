"""Predicts the time and the memory of an export, from rates measured on this machine."""
