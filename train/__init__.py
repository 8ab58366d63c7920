"""Training: batches, optimizer, the sharded step, the loop, checkpoints, evaluation, sampling."""
