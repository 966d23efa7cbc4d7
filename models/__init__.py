"""Architectures in Flax NNX. They emit logits."""
