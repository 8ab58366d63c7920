"""A run as a job of SLURM, through submitit: stopped by a signal, saved, and queued again."""
