"""What kinds of device do each in their own way."""
