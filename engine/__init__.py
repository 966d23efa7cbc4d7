"""Running: data in, steps, checkpoints, predictions out."""
