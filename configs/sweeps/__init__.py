"""Configs that also say which settings a sweep tries."""
