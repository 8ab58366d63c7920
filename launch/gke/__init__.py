"""A run as a JobSet of Kubernetes on Google Cloud: slices of TPUs, or nodes with GPUs."""
