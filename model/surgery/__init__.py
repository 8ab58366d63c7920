"""Saved parameters made to fit a network that differs: what is taken, and how it is changed."""
