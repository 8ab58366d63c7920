"""The floor for seeing what heads do, between the model and training. Nothing stands here yet."""
