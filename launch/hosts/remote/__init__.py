"""What is done on a host. These files are sent there and run by its own python3, 3.8 or newer.

They import the standard library and each other alone. What a user gave comes to them as JSON over
standard input, never as part of a command line.
"""
