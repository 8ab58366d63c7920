"""TPU VMs: asked for, watched, given back."""
