"""Fetches and builds the pinned llama.cpp that decant quantizes and serves with.

In a checkout this package is `vendor`; in the wheel it is `exporter._vendor`.
"""
