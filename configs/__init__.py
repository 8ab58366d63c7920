"""What to run: ml_collections configs, one a file, and the checks that every command gives them."""
