"""Several processes as one run: how they find each other, agree, stop together and end."""
