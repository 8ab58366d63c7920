"""A compiled program, read as text: what it computes, what it sends, how often."""
