"""Getting a run onto machines, and many runs through one config."""
