"""Benchmarks: each a command that prints ratios with their spread."""
