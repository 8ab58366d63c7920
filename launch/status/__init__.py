"""What the runs of some folders do, as their files say it."""
