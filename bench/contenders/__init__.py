"""What is compared: each file is one side, each class one thing that it can do."""
