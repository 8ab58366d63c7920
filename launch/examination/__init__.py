"""What keeps a run from starting, named with its host and the remedy."""
