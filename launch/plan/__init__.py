"""What a run needs and how fast it can be, before a chip is rented."""
