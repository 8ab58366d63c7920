"""Attention backends: who computes the attention pattern and reads the values with it."""
