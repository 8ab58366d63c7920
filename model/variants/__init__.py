"""Attention variants, each one short file: ``model.attention="model.variants.alibi:ALiBi"``."""
