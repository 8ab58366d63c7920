"""Seeing heads: what each one attends to and what it writes."""
