"""A run as a task of SkyPilot: on TPU VMs or GPUs of any cloud, spot or not."""
